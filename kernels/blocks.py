"""Loops over blocks of samples, rows and elements, for the streamed XLA implementation."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from perturbk.kernels.tuning import TUNING


def split(n: int, most: int, multiple: int = 1) -> tuple[int, int]:
    """(number of blocks, size): even blocks of at most about `most` that cover n.

    More than one block is rounded up to a `multiple`, so that vector lanes stay full.
    """
    count = -(-n // max(1, min(n, most)))
    size = -(-n // count)
    if count > 1:
        size = -(-size // multiple) * multiple
        count = -(-n // size)
    return count, size


def cut(length: int, least: int, warps: int) -> tuple[int, int]:
    """(pieces, length of each) of a loop that so many warps go through, to fill a GPU.

    Pieces are of at least about `least`. Sums over them are rounded alike for any batch if
    `warps` are those of one vector.
    """
    most = max(1, TUNING.kernel_cut_warps // warps)
    return split(length, max(min(length, least), -(-length // most)))


def even_blocks(n: int, most: int) -> tuple[int, int]:
    """(number of full blocks, size) with size at most `most`; a rest of n may be left over.

    The largest divisor of n is taken if it is at least half of what is allowed.
    """
    most = max(1, min(n, most))
    count = next((c for c in range(-(-n // most), 2 * -(-n // most) + 1) if n % c == 0), None)
    size = n // count if count else most
    return n // size, size


def pad_to(a: jax.Array, size: int, axis: int) -> jax.Array:
    """Zero-pads the end of one axis up to `size`."""
    width = [(0, 0)] * a.ndim
    width[axis] = (0, size - a.shape[axis])
    return jnp.pad(a, width) if size != a.shape[axis] else a


def stack_over(count: int, body: Callable[[jax.Array | int], jax.Array]) -> jax.Array:
    """[body(0), ..., body(count - 1)], one at a time; no loop for a single block."""
    if count == 1:
        return body(0)[None]
    # The index is carried: one that is looked up in an array would cost vector lanes.
    return lax.scan(lambda i, _: (i + 1, body(i)), jnp.int32(0), None, length=count)[1]


def sum_over(count: jax.Array | int, body: Callable[[jax.Array | int], jax.Array]) -> jax.Array:
    """body(0) + ... + body(count - 1); `count` may be a traced scalar."""
    if isinstance(count, int) and count == 1:
        return body(0)
    out = jax.eval_shape(body, jnp.int32(0))
    zero = jnp.zeros(out.shape, out.dtype)
    return lax.fori_loop(0, count, lambda i, total: total + body(i), zero)
