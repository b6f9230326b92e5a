"""Sums over the samples, for every unit and coordinate: elementwise first, across lanes once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.pallas import launch, vmem
from perturbk.kernels.tpu_cut import LANES, SUBLANES, VECTOR
from perturbk.kernels.tpu_units import Units

_TOGETHER = 32  # coordinates in one turn of the loops here: enough to hide the latency of each


class LaneSums:
    """Adds vectors into a scratch of one vector for each coordinate, then sums their lanes."""

    def __init__(self, acc_ref, units: Units):
        self._acc, self._units = acc_ref, units
        self._single = units.per_row == 1  # one vector of samples: nothing to add to

    def clear(self) -> None:
        """Before the first vector of samples."""
        if self._single:
            return

        @pl.when(pl.program_id(2) == 0)
        def _():
            def zero(i, carry):
                at = pl.ds(i * np.int32(_TOGETHER), _TOGETHER)
                self._acc[at] = jnp.zeros((_TOGETHER, *VECTOR), jnp.float32)
                return carry

            lax.fori_loop(np.int32(0), np.int32(self._acc.shape[0] // _TOGETHER), zero, 0)

    def add(self, coordinate: jax.Array, term: jax.Array) -> None:
        if not self._single:
            term = term + self._acc[coordinate]
        self._acc[coordinate] = term

    def store(self, out_ref) -> None:
        """After the last vector of samples: [sublanes, coordinates], a lane for each."""
        lane = lax.broadcasted_iota(jnp.int32, VECTOR, 1)

        def across(i, carry):
            first = i * np.int32(_TOGETHER)
            tile = lax.div(first, np.int32(LANES)) * np.int32(LANES)
            at = pl.ds(pl.multiple_of(tile, LANES), LANES)
            relative = lane - (first - tile)
            total = out_ref[:, at]
            for u in range(_TOGETHER):
                lanes = jnp.sum(self._acc[first + np.int32(u)], 1, keepdims=True)
                total = jnp.where(relative == np.int32(u), lanes, total)
            out_ref[:, at] = total
            return carry

        @pl.when(pl.program_id(2) == self._units.per_row - 1)
        def _():
            lax.fori_loop(np.int32(0), np.int32(self._acc.shape[0] // _TOGETHER), across, 0)


def launch_sums(units: Units, body, operands, in_specs, *, scratch=(), **kwargs) -> jax.Array:
    """Runs `body(*operands, sums, *scratch)` over (row tile, piece, vector of samples).

    Returns what `body` adds to its `LaneSums`: [row tiles, sublanes, pieces * piece]. The specs
    are those of `Units`, whose grid has the samples before the pieces.
    """

    def turned(spec: pl.BlockSpec) -> pl.BlockSpec:
        index_map = spec.index_map
        return dataclasses.replace(spec, index_map=lambda i, c, b: index_map(i, b, c))

    num_operands = len(operands)

    def with_sums(*refs):
        *inputs, out_ref, acc_ref = refs[: num_operands + 2]
        sums = LaneSums(acc_ref, units)
        sums.clear()
        body(*inputs, sums, *refs[num_operands + 2 :])
        sums.store(out_ref)

    width = units.pieces * units.piece
    return launch(
        with_sums,
        operands,
        [turned(spec) for spec in in_specs],
        pl.BlockSpec((None, SUBLANES, units.piece), lambda i, c, b: (i, 0, c)),
        jax.ShapeDtypeStruct((units.row_tiles, SUBLANES, width), jnp.float32),
        grid=(units.row_tiles, units.pieces, units.per_row),
        scratch=[vmem((-(-units.drawn // _TOGETHER) * _TOGETHER, *VECTOR), jnp.float32), *scratch],
        semantics=("parallel", "parallel", "arbitrary"),
        platform=units.platform,
        **kwargs,
    )
