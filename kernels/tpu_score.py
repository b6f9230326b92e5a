"""Score products on a TPU: `S t` and `S^T w` for any `fun`, with S never stored.

Operands as in `xla_score.py`, layout as in `tpu_cut.py`: the elements of a leaf are the
coordinates of one row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from perturbk.kernels.streams import THREEFRY, Stream
from perturbk.kernels.tpu_bits import bits_of
from perturbk.kernels.tpu_cut import VECTOR
from perturbk.kernels.tpu_steps import columns, over_steps
from perturbk.kernels.tpu_sums import launch_sums


class _Leaf:
    """A leaf as one row, each of its own rows filled up to whole cells: the counters go on."""

    def __init__(self, size: int, keys, shared: int, *, noise: str, stream: Stream, platform: str):
        self.rows, self.length = stream.rows(size)
        cells = stream.cells(1)
        together = cells.together if cells else 1
        self.width = -(-self.length // together) * together
        size = self.rows * self.width
        self.bits = bits_of(keys, shared, 1, size, stream=stream, platform=platform)
        self.units, self.moment = self.bits.units, stream.math(noise).moment

    def filled(self, v: jax.Array) -> jax.Array:
        """[planes, size] -> [planes, coordinates of the one row]; zeros fill."""
        v = v.reshape(-1, self.rows, self.length)
        v = jnp.pad(v, ((0, 0), (0, 0), (0, self.width - self.length)))
        return v.reshape(len(v), -1)

    def elements(self, a: jax.Array) -> jax.Array:
        """The inverse of `filled`."""
        a = a.reshape(-1, self.rows, self.width)[:, :, : self.length]
        return a.reshape(len(a), -1)


def score_dot(
    keys, v, *, noise: str, order: int, power: int, platform: str, stream: Stream = THREEFRY
) -> jax.Array:
    """S t: keys uint32 [groups, 2, N], v [groups, shared, E] -> [groups, shared, N]."""
    groups, shared, size = v.shape
    leaf = _Leaf(size, keys, shared, noise=noise, stream=stream, platform=platform)
    units = leaf.units

    def body(keys_ref, counters_ref, v_ref, out_ref):
        bits = leaf.bits.at(keys_ref, counters_ref)
        start = pl.program_id(2) * np.int32(units.piece)

        @pl.when(pl.program_id(2) == 0)
        def _():
            out_ref[...] = jnp.zeros(VECTOR, jnp.float32)

        def add(q, total):
            drawn = bits(start + q * np.int32(units.step))
            for a, b in zip(columns(units, v_ref, q), drawn, strict=True):
                total = total + a * leaf.moment(b, order, power)
            return total

        out_ref[...] = over_steps(units, add, out_ref[...])

    out = units.launch(
        body,
        [*leaf.bits.operands, units.by_coordinate(leaf.filled(v), 0)],
        [*leaf.bits.in_specs, units.coordinate_spec],
        units.tile_spec(),
        units.tile_shape(jnp.float32),
        name=f"score_dot_{noise}_{order}_{power}",
    )
    return jnp.sum(units.from_samples(out), 1).reshape(groups, shared, -1)


def score_sum(
    keys,
    w,
    *,
    size: int,
    noise: str,
    order: int,
    power: int,
    platform: str,
    stream: Stream = THREEFRY,
) -> jax.Array:
    """S^T w: keys uint32 [groups, 2, N], w [groups, shared, N] -> [groups, shared, size]."""
    groups, shared, num_samples = w.shape
    leaf = _Leaf(size, keys, shared, noise=noise, stream=stream, platform=platform)
    units = leaf.units

    def body(keys_ref, counters_ref, w_ref, sums):
        bits = leaf.bits.at(keys_ref, counters_ref)
        start = pl.program_id(1) * np.int32(units.piece)

        def add(q, carry):
            first = q * np.int32(units.step)
            for u, b in enumerate(bits(start + first)):
                sums.add(first + np.int32(u), w_ref[0] * leaf.moment(b, order, power))
            return carry

        over_steps(units, add, 0)

    out = launch_sums(
        units,
        body,
        [*leaf.bits.operands, units.by_sample(w.reshape(groups * shared, 1, num_samples))],
        [*leaf.bits.in_specs, units.sample_spec(1, groups * shared)],
        name=f"score_sum_{noise}_{order}_{power}",
    )
    return leaf.elements(units.from_coordinates(out)).reshape(groups, shared, size)
