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

        def step(p, rank):
            other, other_at = ordered(row, p, piece)
            before = (other_at[:, None, :] < coordinate[None]).astype(jnp.int32)
            wins = other[:, None, :] - before < key[None]
            # A coordinate drawn twice need not be rounded the same: never compare it with itself.
            wins = wins & (other_at[:, None, :] != coordinate[None])
            return rank + jnp.sum(wins.astype(jnp.int32), 0)

        return lax.fori_loop(0, row.width // piece, step, jnp.zeros(key.shape, jnp.int32))

    return ranks
