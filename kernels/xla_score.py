"""Streamed XLA implementation of the score products `S t` and `S^T w`, which serve any `fun`.

S is the N x E matrix of score moments h_m(z) z^n, sample by element of one leaf. It is never
stored: blocks of it are drawn, used and forgotten. Operands as in `xla.py`, the leaf flattened.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.blocks import pad_to, split, stack_over, sum_over
from perturbk.kernels.draws import Draws
from perturbk.kernels.held import held
from perturbk.kernels.streams import THREEFRY, Stream
from perturbk.kernels.tuning import TUNING


def score_dot(
    keys,
    v,
    *,
    noise: str,
    order: int,
    power: int,
    stream: Stream = THREEFRY,
    block: int | None = None,
) -> jax.Array:
    """S t: keys uint32 [groups, words, N], v [groups, shared, E] -> [groups, shared, N]."""
    block = block or TUNING.block
    groups, shared, size = v.shape
    num_samples = keys.shape[-1]
    # A cell is what is drawn together: four neighbours in a row of the leaf, or one element.
    fours = shared == 1 and (size >= TUNING.fours_from or stream.in_fours(1))
    cell = 4 if fours else 1
    rows, length = stream.rows(size)
    per_row = -(-length // cell)
    elem_blocks, width = split(rows * per_row, block)
    lane_blocks, lanes = split(num_samples, block // width, 16)
    row_blocks, block_rows = split(groups, block // (width * lanes))
    words = _words(keys, block_rows, lanes)
    v = pad_to(v.reshape(groups, shared, rows, length), per_row * cell, 3)
    v = v.reshape(groups, shared, rows * per_row, cell).swapaxes(2, 3)
    v = _blocks(v, block_rows, width)

    def moments(draws: Draws, place: jax.Array) -> jax.Array:
        return _moment(draws, draws.drawn(place), order, power)

    def part(q, b, e):
        # Fused into the noise, the lookups would keep it from being vectorised.
        *ks, vs = lax.optimization_barrier((*(w[q, b] for w in words), v[q, e]))
        # [rows, cells, lanes]: reducing over the cells keeps the samples in vector lanes.
        at = lax.broadcasted_iota(jnp.uint32, (1, width, 1), 1) + jnp.asarray(e * width, jnp.uint32)
        row, place = _in_row(at, rows, per_row)
        place = jnp.broadcast_to(place, (block_rows, width, lanes))
        draws = Draws(stream, noise, tuple(k[:, None] for k in ks), row, length, 1)
        if shared > 1:
            tile = held(moments, draws, place)
            vs = vs[:, :, 0]
            return jnp.einsum("pme,pec->pmc", vs, tile, precision=lax.Precision.HIGHEST)

        def of_cells(draws: Draws, place: jax.Array, vs: jax.Array) -> jax.Array:
            drawn = draws.drawn_four(place) if fours else [draws.drawn(place)]
            total = jnp.zeros((), v.dtype)
            for i, a in enumerate(drawn):
                total = total + vs[:, i, :, None] * _moment(draws, a, order, power)
            return total

        return jnp.sum(held(of_cells, draws, place, vs[:, 0], variates=cell), 1)[:, None]

    def of_rows(q):
        return stack_over(lane_blocks, lambda b: sum_over(elem_blocks, lambda e: part(q, b, e)))

    out = stack_over(row_blocks, of_rows)  # [row blocks, lane blocks, rows, shared, lanes]
    out = jnp.moveaxis(out, 1, 3).reshape(row_blocks * block_rows, shared, lane_blocks * lanes)
    return out[:groups, :, :num_samples]


def score_sum(
    keys,
    w,
    *,
    size: int,
    noise: str,
    order: int,
    power: int,
    stream: Stream = THREEFRY,
    block: int | None = None,
) -> jax.Array:
    """S^T w: keys uint32 [groups, words, N], w [groups, shared, N] -> [groups, shared, size]."""
    block = block or TUNING.block
    groups, shared, num_samples = w.shape
    rows, length = stream.rows(size)
    elem_blocks, width = split(size, block, 16)
    # [rows, lanes, elements]: here it is the elements that stay in vector lanes, if they fill them.
    few = shared == 1 and width < TUNING.vector_lanes
    across, along = (2, 1) if few else (1, 2)
    # Samples added up before storing, unless a small program would have a branch for each of them.
    folds = 1 if shared > 1 or (few and stream.math(noise).divided) else 4
    lane_blocks, lanes = split(num_samples, block * folds // width, 16)
    lanes = -(-lanes // folds) * folds
    row_blocks, block_rows = split(groups, block * folds // (width * lanes))
    count: jax.Array | None = None
    if shared == 1 and lane_blocks > 1:
        keys, w, count = _nonzero_first(keys, w)
    words = _words(keys, block_rows, lanes)
    w = _blocks(w, block_rows, lanes)
    step = lanes // folds

    def moments(draws: Draws, column: jax.Array) -> jax.Array:
        shape = jnp.broadcast_shapes(column.shape, draws.words[0].shape)
        return _moment(draws, draws.drawn(jnp.broadcast_to(column, shape)), order, power)

    def part(q, e, b):
        *ks, ws = lax.optimization_barrier((*(k[q, b] for k in words), w[q, b]))
        at = lax.iota(jnp.uint32, width) + jnp.asarray(e * width, jnp.uint32)
        row, column = _in_row(lax.expand_dims(at, (0, across)), rows, length)
        draws = Draws(stream, noise, tuple(jnp.expand_dims(k, along) for k in ks), row, length, 1)
        if shared > 1:
            tile = held(moments, draws, column)
            return jnp.einsum("pmc,pce->pme", ws, tile, precision=lax.Precision.HIGHEST)

        def of_lanes(draws: Draws, column: jax.Array, ws: jax.Array) -> jax.Array:
            total = jnp.zeros((), ws.dtype)
            for i in range(folds):
                one = functools.partial(
                    lax.slice_in_dim, start_index=i * step, limit_index=(i + 1) * step, axis=across
                )
                some = dataclasses.replace(draws, words=tuple(map(one, draws.words)))
                total = total + one(ws) * moments(some, column)
            return total

        ws = jnp.expand_dims(ws[:, 0], along)
        return jnp.sum(held(of_lanes, draws, column, ws, variates=folds), across)[:, None]

    def of_rows(q):
        blocks = lane_blocks
        if count is not None:  # later blocks hold zero weights only
            most = jnp.max(lax.dynamic_slice_in_dim(count, q * block_rows, block_rows))
            blocks = (most + lanes - 1) // lanes
        return stack_over(elem_blocks, lambda e: sum_over(blocks, lambda b: part(q, e, b)))

    out = stack_over(row_blocks, of_rows)  # [row blocks, elem blocks, rows, shared, width]
    out = jnp.moveaxis(out, 1, 3).reshape(row_blocks * block_rows, shared, elem_blocks * width)
    return out[:groups, :, :size]


def _moment(draws: Draws, drawn: jax.Array, order: int, power: int) -> jax.Array:
    """h_m(z) z^n of what was drawn."""

    def moment(drawn: jax.Array) -> jax.Array:
        return draws.math.moment(drawn, order, power)

    return draws.apart(moment, drawn) if draws.math.divided else moment(drawn)


def _in_row(at: jax.Array, rows: int, length: int) -> tuple[jax.Array, jax.Array]:
    """(row, place in it) of indices into rows of that length."""
    if rows == 1:
        return jnp.zeros((), at.dtype), at
    n = np.uint32(length)
    # Few numbers, and a division each: not to be repeated for every sample.
    return lax.optimization_barrier((lax.div(at, n), lax.rem(at, n)))


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


def _words(keys: jax.Array, block_rows: int, lanes: int) -> list[jax.Array]:
    """Words in blocks, an array for each: a slice of one would keep loops from vectorising."""
    return [_blocks(keys[:, i], block_rows, lanes) for i in range(keys.shape[1])]


def _blocks(a: jax.Array, block_rows: int, size: int) -> jax.Array:
    """[groups, ..., k] -> [row blocks, k blocks, block rows, ..., size], zero-padded."""
    row_blocks, k_blocks = -(-a.shape[0] // block_rows), -(-a.shape[-1] // size)
    a = pad_to(pad_to(a, k_blocks * size, a.ndim - 1), row_blocks * block_rows, 0)
    a = a.reshape(row_blocks, block_rows, *a.shape[1:-1], k_blocks, size)
    return jnp.moveaxis(a, -2, 1)
