"""Ranks in a fused kernel: by counting, a few coordinates against the whole row at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.tuning import TUNING


def tile_ranks(sort_key: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """Row -> stable ranks int32 [tile, lanes] in the order of a sort key; the row is one tile.

    The row stays where it is; pieces of it are drawn once more and compared with all of it,
    since no lowering can index a value by a loop counter.
    """

    def ordered(y: jax.Array, coordinate: jax.Array, d: int) -> jax.Array:
        # What lies behind the end of the row ranks last.
        return jnp.where(coordinate < d, sort_key(y), np.int32(0x7FFFFFFF))

    def ranks(row) -> jax.Array:
        piece = min(TUNING.kernel_compare, row.tile)
        lanes = row.words[0].shape[1]
        coordinate = row.coordinates(0)
        key = ordered(row.perturbed(0), coordinate, row.d)

        def step(t, rank):
            other_at = row.coordinates(t, piece)
            other = ordered(row.perturbed(t, piece), other_at, row.d)
            before = (other_at[:, None, :] < coordinate[None]).astype(jnp.int32)
            wins = other[:, None, :] - before < key[None]
            # A coordinate drawn twice need not be rounded the same: never compare it with itself.
            wins = wins & (other_at[:, None, :] != coordinate[None])
            return rank + jnp.sum(wins.astype(jnp.int32), 0)

        return lax.fori_loop(0, row.tile // piece, step, jnp.zeros((row.tile, lanes), jnp.int32))

    return ranks
