"""Streamed XLA implementation of the score products `S t` and `S^T w`, which serve any `fun`.

S is the N x E matrix of score moments h_m(z) z^n, sample by element of one leaf. It is never
stored: blocks of it are drawn, used and forgotten. Operands as in `xla.py`, the leaf flattened.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.blocks import pad_to, split, stack_over, sum_over
from perturbk.kernels.noise import NOISES
from perturbk.kernels.threefry import element_bits
from perturbk.kernels.tuning import TUNING


def _moment(noise: str, order: int, power: int):
    def moment(k0, k1, element):
        return NOISES[noise].moment(element_bits(k0, k1, element), order, power)

    return moment


def score_dot(keys, v, *, noise: str, order: int, power: int) -> jax.Array:
    """S t: keys uint32 [groups, 2, N], v [groups, shared, E] -> [groups, shared, N]."""
    groups, shared, size = v.shape
    num_samples = keys.shape[-1]
    moment = _moment(noise, order, power)
    group = TUNING.group if shared == 1 and size >= TUNING.group_from else 1
    elem_blocks, width = split(size, TUNING.block, group)
    width = -(-width // group) * group
    lane_blocks, lanes = split(num_samples, TUNING.block * group // width, 16)
    row_blocks, block_rows = split(groups, TUNING.block * group // (width * lanes))
    words = [_blocks(keys[:, i], block_rows, lanes) for i in (0, 1)]
    v = _blocks(v, block_rows, width)
    step = width // group

    def part(q, b, e):
        # Fused into the noise, the lookups would keep it from being vectorised.
        k0, k1, vs = lax.optimization_barrier((words[0][q, b], words[1][q, b], v[q, e]))
        k0, k1 = k0[:, None], k1[:, None]
        # [rows, elements, lanes]: reducing over the elements keeps the samples in vector lanes.
        element = lax.broadcasted_iota(jnp.uint32, (block_rows, step, lanes), 1)
        element = element + jnp.asarray(e * width, jnp.uint32)
        if shared > 1:
            tile = lax.optimization_barrier(moment(k0, k1, element))
            return jnp.einsum("pme,pec->pmc", vs, tile, precision=lax.Precision.HIGHEST)
        total = jnp.zeros((), v.dtype)
        for i in range(group):
            at = element + np.uint32(i * step)
            total = total + vs[:, 0, i * step : (i + 1) * step, None] * moment(k0, k1, at)
        return jnp.sum(lax.optimization_barrier(total), 1)[:, None]

    def of_rows(q):
        return stack_over(lane_blocks, lambda b: sum_over(elem_blocks, lambda e: part(q, b, e)))

    out = stack_over(row_blocks, of_rows)  # [row blocks, lane blocks, rows, shared, lanes]
    out = jnp.moveaxis(out, 1, 3).reshape(row_blocks * block_rows, shared, lane_blocks * lanes)
    return out[:groups, :, :num_samples]


def score_sum(keys, w, *, size: int, noise: str, order: int, power: int) -> jax.Array:
    """S^T w: keys uint32 [groups, 2, N], w [groups, shared, N] -> [groups, shared, size]."""
    groups, shared, num_samples = w.shape
    moment = _moment(noise, order, power)
    group = TUNING.group if shared == 1 else 1
    elem_blocks, width = split(size, TUNING.block, 16)
    lane_blocks, lanes = split(num_samples, TUNING.block * group // width, 16)
    lanes = -(-lanes // group) * group
    row_blocks, block_rows = split(groups, TUNING.block * group // (width * lanes))
    count: jax.Array | None = None
    if shared == 1 and lane_blocks > 1:
        keys, w, count = _nonzero_first(keys, w)
    words = [_blocks(keys[:, i], block_rows, lanes) for i in (0, 1)]
    w = _blocks(w, block_rows, lanes)
    step = lanes // group

    def part(q, e, b):
        k0, k1, ws = lax.optimization_barrier((words[0][q, b], words[1][q, b], w[q, b]))
        k0, k1 = k0[:, :, None], k1[:, :, None]
        # [rows, lanes, elements]: here it is the elements that stay in vector lanes.
        element = lax.broadcasted_iota(jnp.uint32, (block_rows, step, width), 2)
        element = element + jnp.asarray(e * width, jnp.uint32)
        if shared > 1:
            tile = lax.optimization_barrier(moment(k0, k1, element))
            return jnp.einsum("pmc,pce->pme", ws, tile, precision=lax.Precision.HIGHEST)
        total = jnp.zeros((), w.dtype)
        for i in range(group):
            at = slice(i * step, (i + 1) * step)
            total = total + ws[:, 0, at, None] * moment(k0[:, at], k1[:, at], element)
        return jnp.sum(lax.optimization_barrier(total), 1)[:, None]

    def of_rows(q):
        blocks = lane_blocks
        if count is not None:  # later blocks hold zero weights only
            most = jnp.max(lax.dynamic_slice_in_dim(count, q * block_rows, block_rows))
            blocks = (most + lanes - 1) // lanes
        return stack_over(elem_blocks, lambda e: sum_over(blocks, lambda b: part(q, e, b)))

    out = stack_over(row_blocks, of_rows)  # [row blocks, elem blocks, rows, shared, width]
    out = jnp.moveaxis(out, 1, 3).reshape(row_blocks * block_rows, shared, elem_blocks * width)
    return out[:groups, :, :size]


def _nonzero_first(keys, w):
    """Moves the samples that weigh something to the front; also returns their number per group.

    A sample whose output equals the baseline's has weight zero and adds nothing to a gradient;
    with a small sigma that is most of them.
    """
    num_samples = w.shape[2]
    some = w[:, 0] != 0
    place = jnp.where(some, jnp.cumsum(some, 1) - 1, num_samples)
    row = lax.broadcasted_iota(jnp.int32, some.shape, 0)
    sample = lax.broadcasted_iota(jnp.int32, some.shape, 1)
    order = jnp.zeros(some.shape, jnp.int32).at[row, place].set(sample, mode="drop")
    count = jnp.sum(some, 1, dtype=jnp.int32)
    live = sample < count[:, None]
    keys = jnp.take_along_axis(keys, order[:, None], 2)
    w = jnp.where(live[:, None], jnp.take_along_axis(w, order[:, None], 2), 0)
    return *lax.optimization_barrier((keys, w)), count


def _blocks(a: jax.Array, block_rows: int, size: int) -> jax.Array:
    """[groups, ..., k] -> [row blocks, k blocks, block rows, ..., size], zero-padded."""
    row_blocks, k_blocks = -(-a.shape[0] // block_rows), -(-a.shape[-1] // size)
    a = pad_to(pad_to(a, k_blocks * size, a.ndim - 1), row_blocks * block_rows, 0)
    a = a.reshape(row_blocks, block_rows, *a.shape[1:-1], k_blocks, size)
    return jnp.moveaxis(a, -2, 1)
