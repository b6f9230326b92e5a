"""Random bits in a TPU kernel: the counters of its units, and the encryptions of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.hardware import Seeded
from perturbk.kernels.streams import Stream
from perturbk.kernels.threefry import Cells, keyed_rounds
from perturbk.kernels.tpu_cut import LANES, VECTOR, wrapped
from perturbk.kernels.tpu_generator import GeneratedBits
from perturbk.kernels.tpu_units import Units


def bits_of(
    keys: jax.Array, shared: int, rows: int, d: int, *, stream: Stream, inner: int = 1, **cut
) -> Bits | GeneratedBits:
    """The bits that a stream gives `rows` rows of d coordinates, for each group and shared vector.

    cut: platform, whole: as in `Cut`.
    """
    cells = stream.cells(inner)
    if isinstance(cells, Seeded):
        return GeneratedBits(keys, shared, rows, d, cells=cells, inner=inner, **cut)
    if isinstance(cells, Cells):
        return Bits(keys, shared, rows, d, stream=stream, cells=cells, inner=inner, **cut)
    raise NotImplementedError(f"the TPU kernels cannot draw by {stream}.")


class Bits:
    """By Threefry: the bits of `rows` rows of d coordinates for each group and shared vector.

    Attributes:
        units: the cut of the rows.
        operands, in_specs: what comes first in every kernel that draws: the keys and the counters.
    """

    def __init__(
        self,
        keys: jax.Array,
        shared: int,
        rows: int,
        d: int,
        *,
        stream: Stream,
        cells: Cells,
        platform: str,
        inner: int = 1,
        whole: bool = False,
    ):
        groups, words, num_samples = keys.shape
        self.units = units = Units(
            groups * shared * rows, d, num_samples, inner, whole, cells.together, platform
        )
        self._cells = cells
        counters = self._counters(stream, rows)
        self.operands: Sequence[jax.Array] = [
            units.by_sample(keys),
            units.by_unit(jnp.repeat(counters, LANES, axis=2)),
        ]
        self.in_specs: Sequence[pl.BlockSpec] = [
            units.sample_spec(words, groups),
            units.unit_words_spec(counters.shape[2]),
        ]

    def _counters(self, stream: Stream, rows: int) -> jax.Array:
        """`Cells.words` of the first coordinates, wrapped: int32 [planes, segments, words]."""
        units = self.units
        row = lax.iota(jnp.int32, units.planes)[:, None] % np.int32(rows)
        first = lax.iota(jnp.int32, units.segments)[None] * np.int32(units.segment)
        words = self._cells.words(*stream.counters(row, units.d, units.inner)(first))
        shape = units.planes, units.segments
        return jnp.stack([jnp.broadcast_to(w, shape).astype(jnp.int32) for w in words], 2)

    def at(self, keys_ref, counters_ref) -> Callable[[jax.Array], list[jax.Array]]:
        """first coordinate -> random bits of a step's coordinates, a vector of units for each.

        What does not change from step to step, the key word and the counter of the unit, is added
        to the counter beforehand.
        """
        cells, step = self._cells, self.units.step
        k0, k1 = keys_ref[0], keys_ref[1]
        origin, *rest = (
            jnp.broadcast_to(counters_ref[:, i : i + LANES], VECTOR).astype(jnp.uint32)
            for i in range(0, counters_ref.shape[1], LANES)
        )
        origin = k1 + origin

        def draw(first: jax.Array) -> list[jax.Array]:
            cell = lax.div(first, np.int32(cells.together))
            start = origin + (cell * wrapped(cells.stride)).astype(jnp.uint32)
            counters = [
                start + wrapped(u * cells.stride).astype(np.uint32)
                for u in range(step // cells.together)
            ]
            words = [keyed_rounds(k0, k1, k0, counter) for counter in counters]
            return [bits for a, b in words for bits in cells.bits(a, b, *rest)]

        return draw
