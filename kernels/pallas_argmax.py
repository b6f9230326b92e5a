"""Argmax in a fused kernel: a running maximum, elementwise over tiles of coordinates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.argmax import first_max

_NONE = np.int32(np.iinfo(np.int32).max)


def _first(pieces: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """The first of the largest values, elementwise, or of the NaN: (value, coordinate) of each."""
    best, arg = pieces[0]
    for y, coordinate in pieces[1:]:
        better = (y > best) | ((y != y) & (best == best))  # strict: the first index wins ties
        best, arg = jnp.where(better, y, best), jnp.where(better, coordinate, arg)
    return best, arg


def winners(row, tangent_ref=None) -> tuple[tuple[jax.Array], jax.Array]:
    """First index of the maximum of each sample's row, or its first NaN: int32; and <h_1(z), t>.

    Both are [1, lanes]. The tiles are compared elementwise, and across coordinates only once, at
    the end. tangent_ref: laid out as the columns of the row; None for zero.
    """

    def step(t, carry):
        best, arg, product = carry
        pieces, more = row.pieces(t, tangent_ref)
        return *_first([(best, arg), *pieces]), product + more

    # The first values are the start, so that a row of -inf has a winner too.
    pieces, product = row.pieces(0, tangent_ref)
    best, arg = _first(pieces)
    start = best, arg, jnp.broadcast_to(product, best.shape)
    best, arg, product = lax.fori_loop(1, row.num_tiles, step, start)
    return (_across(best, arg),), jnp.sum(product, 0, keepdims=True)


def best(y: jax.Array, real: jax.Array) -> jax.Array:
    """The winner among those of a row's pieces, [..., n, lanes], in the order of coordinates."""
    del real  # every piece has one
    return first_max(y, -2)


def _across(best: jax.Array, arg: jax.Array) -> jax.Array:
    """The winner of each lane among the winners of the pieces' coordinates."""
    is_nan = best != best
    top = jnp.max(jnp.where(is_nan, np.float32(np.inf), best), 0, keepdims=True)
    any_nan = jnp.max(is_nan.astype(jnp.int32), 0, keepdims=True)
    hit = is_nan | ((any_nan == 0) & (best == top))
    return jnp.min(jnp.where(hit, arg, _NONE), 0, keepdims=True)
