"""Loops over blocks of samples, rows and elements, for the streamed XLA implementation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from perturbk.kernels.tuning import TUNING

_DROPS_BARRIERS = jax.__version_info__ < (0, 11)
# Seen to hold of these. Another version draws as if there were many.
_HAS_SMALL_CALLS = jax.__version_info__ < (0, 13)


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


def cut(length: int, least: int, programs: int) -> tuple[int, int]:
    """(pieces, length of each) of a loop that so many programs go through, to fill a GPU.

    Pieces are of at least about `least`. Sums over them are rounded alike for any batch if
    `programs` are those of one vector.
    """
    most = max(1, TUNING.kernel_cut_programs // programs)
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


def held(f: Callable[..., jax.Array], *operands, variates: int = 1) -> jax.Array:
    """f(*operands), elementwise, finished before anything that uses it begins.

    Fused into a reduction noise is drawn one by one, and into two of them twice, rounded in two
    ways. A barrier forbids it, but on a CPU XLA of jax 0.10 drops barriers before it fuses. It
    fuses nothing into a branch.

    A CPU also gives a thousand variates to several threads, whose start takes 20 to 100 us. A small
    call, which is XLA's word, is one kernel, for the thread that runs the program.

    Args:
        f: of arrays alone, and elementwise: sorts, scatters and calls of libraries are no kernels.
        operands: pytrees, not known before the program runs.
        variates: that one of f's values is made of.
    """
    call = jax.jit(f)
    size = math.prod(jax.eval_shape(call, *operands).shape) * variates

    def behind_a_barrier(*operands) -> jax.Array:
        return lax.optimization_barrier(call(*operands))

    @jax.jit
    def in_a_branch(*operands) -> jax.Array:
        # XLA aborts at an operand of a small call that is not used.
        of_each = map(_first_byte, jax.tree.leaves(operands))
        never = functools.reduce(jnp.bitwise_xor, of_each) & np.uint8(1) > np.uint8(1)
        return lax.cond(never, jnp.zeros_like, lambda a: a, call(*operands))

    def in_one_thread(*operands) -> jax.Array:
        small = in_a_branch(*operands)
        return set_xla_metadata(small, xla_cpu_small_call="true", inlineable="false")

    if _HAS_SMALL_CALLS and isinstance(size, int) and size <= TUNING.one_thread_most:
        on_cpu = in_one_thread
    else:
        on_cpu = in_a_branch if _DROPS_BARRIERS else behind_a_barrier

    @jax.custom_batching.custom_vmap
    def run(*operands) -> jax.Array:
        return lax.platform_dependent(*operands, cpu=on_cpu, default=behind_a_barrier)

    @run.def_vmap
    def _(size: int, mapped: list, *operands) -> tuple[jax.Array, bool]:
        del size  # all of them at once: neither many small calls nor a branch for each
        axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(mapped))
        return held(jax.vmap(f, axes), *operands, variates=variates), True

    return run(*operands)


def _first_byte(a: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(a.reshape(-1)[0], jnp.uint8).reshape(-1)[0]


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
