"""The k largest in a fused kernel: each sample's winners so far, in registers, by insertion."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.pallas_rows import insert
from perturbk.kernels.topk import LAST
from perturbk.kernels.tuning import TUNING


def winners(row, k: int, sort_key: Callable[[jax.Array], jax.Array], tangent_ref=None) -> tuple:
    """(indices of the k largest, descending, each int32; <h_1(z), t>, float32), all [1, lanes].

    A tile of the row is one coordinate, or a four: no lowering can index the values of a tile.
    tangent_ref: laid out as the columns of the row; None for zero.
    """
    tiles = max(1, TUNING.kernel_top_k_unroll // row.tile)

    def step(t, carry):
        *kept, product = carry
        for u in range(tiles):
            tile = t * tiles + u
            pieces, more = row.pieces(jnp.minimum(tile, row.num_tiles - 1), tangent_ref)
            real = tile < row.num_tiles
            product += jnp.where(real, more, np.float32(0))
            for y, coordinate in pieces:
                key = jnp.where(real & (coordinate < row.d), sort_key(y), LAST)
                kept = insert(kept, (key, coordinate))
        return *kept, product

    nothing = jnp.full((1, row.lanes), LAST), jnp.zeros((1, row.lanes), jnp.int32)
    start = *(nothing,) * k, jnp.zeros((1, row.lanes), jnp.float32)
    *kept, product = lax.fori_loop(0, -(-row.num_tiles // tiles), step, start)
    return tuple(index for _, index in kept), product


def best(
    y: jax.Array, real: jax.Array, *, k: int, sort_key: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The k largest of y [..., n, lanes], in the order of coordinates: int32 [..., k, lanes]."""
    keys = jnp.where(real, sort_key(y), LAST)
    return lax.top_k(keys.swapaxes(-1, -2), k)[1].swapaxes(-1, -2)


def k_hot(row, winners: tuple, t) -> jax.Array:
    """Outputs of tile t: one at the winners."""
    place = row.coordinates(t, row.out_tile)
    return sum((winner == place).astype(jnp.int32) for winner in winners)
