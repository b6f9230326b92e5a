"""Argmax in a fused kernel: a running maximum, elementwise over tiles of coordinates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_NONE = np.int32(np.iinfo(np.int32).max)


def winners(row) -> jax.Array:
    """First index of the maximum of each sample's row, or its first NaN: int32 [1, lanes].

    The tiles are compared elementwise, and across coordinates only once, at the end.
    """
    shape = (row.tile, row.words[0].shape[1])

    def step(t, carry):
        best, arg = carry
        y = row.perturbed(t)
        better = (y > best) | ((y != y) & (best == best))  # strict: the first index wins ties
        coordinate = jnp.broadcast_to(row.coordinates(t), shape)
        return jnp.where(better, y, best), jnp.where(better, coordinate, arg)

    # The first tile is the start, so that a row of -inf has a winner too.
    start = row.perturbed(0), jnp.broadcast_to(row.coordinates(0), shape)
    best, arg = lax.fori_loop(1, row.num_tiles, step, start)
    is_nan = best != best
    top = jnp.max(jnp.where(is_nan, np.float32(np.inf), best), 0, keepdims=True)
    any_nan = jnp.max(is_nan.astype(jnp.int32), 0, keepdims=True)
    hit = is_nan | ((any_nan == 0) & (best == top))
    return jnp.min(jnp.where(hit, arg, _NONE), 0, keepdims=True)
