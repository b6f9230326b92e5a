"""Random bits in a TPU kernel from the chip's own generator; the interface is that of `Bits`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.hardware import Seeded, generate, seeds
from perturbk.kernels.pallas import smem_spec
from perturbk.kernels.tpu_cut import VECTOR
from perturbk.kernels.tpu_units import Units


class GeneratedBits:
    """The bits of `rows` rows of d coordinates for each group and shared vector.

    Attributes:
        units: the cut of the rows, whose vectors hold samples of one row.
        operands, in_specs: the first seeds of the cells of a piece, and the second ones.
    """

    def __init__(
        self,
        keys: jax.Array,
        shared: int,
        rows: int,
        d: int,
        *,
        cells: Seeded,
        platform: str,
        inner: int = 1,
        whole: bool = False,
    ):
        groups, _, num_samples = keys.shape
        together = cells.together
        planes = groups * shared * rows
        self.units = units = Units(
            planes, d, num_samples, inner, whole, together, platform, seeded=True
        )
        self._cells = units.piece // together
        # What each sample holds, all of a group hold.
        shape = groups, rows, units.per_row, units.pieces * self._cells
        k0, k1 = (lax.broadcast_in_dim(keys[:, i, 0], shape, (0,)) for i in range(2))
        row, vector, cell = (lax.broadcasted_iota(jnp.uint32, shape, i) for i in (1, 2, 3))
        found = seeds(k0, k1, vector, row * np.uint32(-(-d // together)) + cell)
        found = found.reshape(2, groups * rows, units.per_row, units.pieces, 1, self._cells)
        self.operands: Sequence[jax.Array] = [found[0], found[1]]

        def index(i, b, c):
            group = lax.div(i, np.int32(shared * rows))
            return group * np.int32(rows) + lax.rem(i, np.int32(rows)), b, c, 0, 0

        self.in_specs: Sequence[pl.BlockSpec] = [
            smem_spec((None, None, None, 1, self._cells), index)
        ] * 2

    def at(self, first_ref, second_ref) -> Callable[[jax.Array], list[jax.Array]]:
        """first coordinate -> random bits of a step's coordinates, which are those of a cell."""
        step, platform = self.units.step, self.units.platform

        def draw(first: jax.Array) -> list[jax.Array]:
            cell = lax.rem(lax.div(first, np.int32(step)), np.int32(self._cells))
            return generate(first_ref[0, cell], second_ref[0, cell], step, VECTOR, platform)

        return draw
