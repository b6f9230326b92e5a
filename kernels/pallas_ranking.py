"""Ranks in a fused kernel: by counting, one tile of the row against all of it at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.tuning import TUNING


def tile_ranks(sort_key: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """(row, t) -> stable ranks of tile t among the whole row, int32 [tile, lanes].

    The tile stays where it is; small pieces of the row are drawn and compared with it, since no
    lowering can index a value by a loop counter. The noise of the row is drawn once per tile.
    """

    def ordered(row, t, height: int) -> tuple[jax.Array, jax.Array]:
        """(sort keys, coordinates) of tile t; what lies behind the end of the row ranks last."""
        coordinate = row.coordinates(t, height)
        key = sort_key(row.perturbed(t, height))
        return jnp.where(coordinate < row.d, key, np.int32(0x7FFFFFFF)), coordinate

    def ranks(row, t) -> jax.Array:
        piece = min(TUNING.kernel_compare, row.tile)
        key, coordinate = ordered(row, t, row.tile)

        def before(other, _):
            return other[:, None, :] <= key[None]  # wins a tie

        def within(other, at):
            earlier = (at[:, None, :] < coordinate[None]).astype(jnp.int32)
            # A coordinate drawn twice need not be rounded the same: never compare it with itself.
            return (other[:, None, :] - earlier < key[None]) & (at[:, None, :] != coordinate[None])

        def after(other, _):
            return other[:, None, :] < key[None]

        def count(first, last, wins, rank):
            def step(p, rank):
                return rank + jnp.sum(wins(*ordered(row, p, piece)).astype(jnp.int32), 0)

            return lax.fori_loop(first, last, step, rank)

        per_tile = row.tile // piece
        first, last = t * per_tile, (t + 1) * per_tile
        rank = count(0, first, before, jnp.zeros(key.shape, jnp.int32))
        rank = count(first, last, within, rank)
        return count(last, row.width // piece, after, rank)

    return ranks
