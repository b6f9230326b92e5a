"""Ranks within each perturbed row: the code of a sample is the whole vector of ranks.

Rank 0 is the smallest value. Ties go to the lower index and NaN ranks last, as in
`jnp.argsort(jnp.argsort(y))`. Other orders are those of another sort key, see `SORT_KEYS`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.draws import Draws, perturbed
from perturbk.kernels.tuning import TUNING


def code_dtype(d: int) -> type:
    """Smallest unsigned type that holds 0..d-1."""
    return jnp.uint8 if d <= 1 << 8 else jnp.uint16 if d <= 1 << 16 else jnp.uint32


def sort_key(y: jax.Array) -> jax.Array:
    """int32 keys in the order in which `jnp.sort` puts float32 values: -0 == +0, NaN last."""
    bits = lax.bitcast_convert_type(y, jnp.int32)
    # Sign and magnitude; -0 becomes 0. (XLA drops a `y + 0` that would see to it.)
    key = jnp.where(bits < 0, -(bits & np.int32(0x7FFFFFFF)), bits)
    return jnp.where(y != y, np.int32(0x7FFFFFFF), key)


def _descending_key(y: jax.Array) -> jax.Array:
    return sort_key(-y)


def _nan_first_key(y: jax.Array) -> jax.Array:
    """The order of `jnp.argsort(y, descending=True)`: NaN first, then the largest."""
    # One above the smallest integer: counting subtracts one.
    return jnp.where(y != y, np.int32(-0x7FFFFFFF), sort_key(-y))


# Orders of ranking: y -> int32 keys, of which the smallest has rank 0.
SORT_KEYS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "ranking": sort_key,
    "ranking_descending": _descending_key,
    "ranking_nan_first": _nan_first_key,
}
# Those that put large values first.
DESCENDING = ("ranking_descending", "ranking_nan_first")


def ranks(key: jax.Array) -> jax.Array:
    """Stable ascending ranks of int32 keys along axis -2 (lanes last), int32."""
    d = key.shape[-2]
    if d <= TUNING.counting_least:
        return _by_counting(key)
    if d > TUNING.counting_most:
        return _by_sorting(key)
    return lax.platform_dependent(key, cpu=_by_counting, default=_by_sorting)


def _by_counting(key: jax.Array) -> jax.Array:
    """rank_i = #{j : key_j < key_i, or equal and j < i}, all lanes at once.

    On integers `key_j <= key_i` is `key_j - 1 < key_i`, so that one comparison settles the tie.
    """
    axis, d = key.ndim - 2, key.shape[-2]
    unroll = min(d, TUNING.counting_unroll)
    steps = -(-d // unroll)
    padding = [(0, 0, 0)] * key.ndim
    padding[axis] = (0, steps * unroll - d, 0)
    others = lax.pad(key, np.int32(0x7FFFFFFF), padding)  # smaller than nothing
    index = lax.broadcasted_iota(jnp.int32, key.shape, axis)

    def step(t: jax.Array, rank: jax.Array) -> jax.Array:
        for u in range(unroll):
            j = t * unroll + u
            other = lax.dynamic_slice_in_dim(others, j, 1, axis)
            rank = rank + (other - (j < index).astype(jnp.int32) < key).astype(jnp.int32)
        return rank

    start = jnp.zeros(key.shape, jnp.int32)
    return step(np.int32(0), start) if steps == 1 else lax.fori_loop(0, steps, step, start)


def _by_sorting(key: jax.Array) -> jax.Array:
    """One stable sort that carries the index, then the inverse permutation."""
    key = key.swapaxes(-1, -2)
    shape, d = key.shape, key.shape[-1]
    index = lax.broadcasted_iota(jnp.int32, shape, key.ndim - 1)
    _, order = lax.sort((key, index), num_keys=1)
    order = order.reshape(-1, d)
    row = lax.broadcasted_iota(jnp.int32, order.shape, 0)
    rank = (
        jnp.zeros(order.shape, jnp.int32)
        .at[row, order]
        .set(index.reshape(-1, d), unique_indices=True, mode="promise_in_bounds")
    )
    return rank.reshape(shape).swapaxes(-1, -2)


def codes(
    draw: Draws,
    x: jax.Array,
    sigma: jax.Array,
    num_lanes: int,
    *,
    key: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Ranks of a block: unsigned [rows, shared, d, lanes]; arguments as in `argmax.codes`.

    `key` is one of `SORT_KEYS`.
    """
    return ranks(perturbed(draw, x, sigma, num_lanes, key)).astype(code_dtype(x.shape[-1]))


def of_values(y: jax.Array, *, key: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Ranks along the last axis of values [..., d], by two sorts."""
    index = lax.broadcasted_iota(jnp.int32, y.shape, y.ndim - 1)
    _, order = lax.sort((key(y), index), num_keys=1)
    return lax.sort((order, index), num_keys=1)[1].astype(code_dtype(y.shape[-1]))


def weighted(codes: jax.Array, weights: jax.Array, d: int) -> jax.Array:
    """sum_s W_s rank_s: codes [..., rows, d, N] and weights [..., N] -> [..., rows, d]."""
    del d
    return jnp.sum(codes.astype(weights.dtype) * weights[..., None, None, :], -1)


def dot(codes: jax.Array, cotangent: jax.Array) -> jax.Array:
    """<rank_s, g>, summed over rows: [..., rows, d, N] and [..., rows, d] -> [..., N]."""
    return jnp.sum(codes.astype(cotangent.dtype) * cotangent[..., None], (-3, -2))
