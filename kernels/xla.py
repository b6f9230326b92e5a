"""Streamed XLA implementation of the op kernels: samples, sums and products, in bounded memory.

Canonical operands, shared by every implementation (`perturbk/primitives.py` makes them):

    keys   uint32 [groups, words, N]          the stream's words of each sample, per group
    x      float32 [groups, shared, rows, d]  rows are perturbed and reduced independently
    sigma  float32 [groups, shared, 1 | rows, 1 | d]

A *group* has its own noise; the *shared* vectors of a group see the same noise, drawn once.
Coordinate j of row r is element `(r // inner) * d * inner + r % inner + j * inner` of its leaf:
`inner` is the product of the axes behind the one that the op works along. A row has `out` outputs,
which is d unless `OpMath.out_size` says otherwise, and its code has the shape `OpMath.code_shape`.
The `stream` that the noise is drawn from is one of `streams.py`, Threefry unless another is passed.
A `block` is of so many stored elements, `TUNING.block` if not told otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from perturbk.kernels.blocks import pad_to, split, stack_over, sum_over
from perturbk.kernels.draws import Draws
from perturbk.kernels.ops import op_math
from perturbk.kernels.streams import THREEFRY, Stream
from perturbk.kernels.tuning import TUNING


class _Blocks:
    """How the (rows of all groups) x (samples) plane is cut, and the codes of one piece."""

    def __init__(
        self, keys, x, sigma, op: str, noise: str, inner: int, stream: Stream, block: int | None
    ):
        block = block or TUNING.block
        self.groups, self.shared, self.rows, self.d = x.shape
        self.num_samples = keys.shape[-1]
        self.op, self.noise, self.inner, self.stream = op_math(op), noise, inner, stream
        block *= self.op.stored_together(self.d, self.shared, stream.in_fours(inner))
        per_lane = self.shared * self.d
        all_rows = self.groups * self.rows
        self.lane_blocks, self.lanes = split(self.num_samples, block // per_lane, 16)
        # Several rows share a block only where one row's samples do not fill it.
        self.row_blocks, self.block_rows = split(all_rows, block // (per_lane * self.lanes))
        keys = pad_to(keys, self.lane_blocks * self.lanes, 2)
        keys = keys.reshape(*keys.shape[:2], self.lane_blocks, self.lanes)
        self.words = tuple(keys[:, i] for i in range(keys.shape[1]))
        sigma = jnp.broadcast_to(sigma, (*x.shape[:3], sigma.shape[3]))
        self.x, self.sigma = self.by_row(x), self.by_row(sigma)

    def by_row(self, a: jax.Array) -> jax.Array:
        """[groups, shared, rows, k] -> [row blocks, block rows, shared, k], zero-padded."""
        a = a.swapaxes(1, 2).reshape(-1, self.shared, a.shape[3])
        a = pad_to(a, self.row_blocks * self.block_rows, 0)
        return a.reshape(self.row_blocks, self.block_rows, *a.shape[1:])

    def codes(self, q: jax.Array | int, b: jax.Array | int) -> jax.Array:
        """Codes of row block q and lane block b: [block rows, shared, *code, lanes]."""
        row = q * self.block_rows + jnp.arange(self.block_rows, dtype=jnp.int32)
        row = jnp.minimum(row, self.groups * self.rows - 1)
        if self.block_rows == 1:
            words = tuple(w[row[0] // self.rows, b][None] for w in self.words)
        else:
            words = tuple(w[row // self.rows, b] for w in self.words)
        # Fused into the noise, the slice would keep it from being vectorised.
        words = lax.optimization_barrier(words)
        in_leaf = (row % self.rows).astype(jnp.uint32)
        draw = Draws(
            self.stream,
            self.noise,
            tuple(w[:, None] for w in words),
            in_leaf[:, None, None],
            self.d,
            self.inner,
        )
        return self.op.codes(draw, self.x[q], self.sigma[q], self.lanes)

    def join(self, blocks: jax.Array) -> jax.Array:
        """[row blocks, lane blocks, block rows, shared, ..., lanes] -> [groups, rows, ..., N]."""
        a = jnp.moveaxis(blocks, 1, -2)
        a = a.reshape(self.row_blocks * self.block_rows, *a.shape[2:-2], -1)
        a = a[: self.groups * self.rows, ..., : self.num_samples]
        return a.reshape(self.groups, self.rows, *a.shape[1:])


def samples(
    keys,
    x,
    sigma,
    *,
    op: str,
    noise: str,
    inner: int,
    stream: Stream = THREEFRY,
    block: int | None = None,
) -> jax.Array:
    """Codes of every sample: [groups, shared, rows, *code, N]."""
    blocks = _Blocks(keys, x, sigma, op, noise, inner, stream, block)
    codes = stack_over(
        blocks.row_blocks,
        lambda q: stack_over(blocks.lane_blocks, lambda b: blocks.codes(q, b)),
    )
    return blocks.join(codes).swapaxes(1, 2)


def op_sum(
    keys,
    x,
    sigma,
    weights,
    *,
    op: str,
    noise: str,
    inner: int,
    stream: Stream = THREEFRY,
    block: int | None = None,
) -> jax.Array:
    """sum_s W_s op(x + sigma z_s): weights [groups, shared, N] -> [groups, shared, rows, out]."""
    math = op_math(op)
    if not math.streamed:
        codes = samples(keys, x, sigma, op=op, noise=noise, inner=inner, stream=stream, block=block)
        return math.weighted(codes, weights, x.shape[-1])
    blocks = _Blocks(keys, x, sigma, op, noise, inner, stream, block)
    lane_weights = _per_row(blocks, weights)

    def of_rows(q):
        def part(b):
            codes = blocks.codes(q, b)[:, :, None]
            return math.weighted(codes, lane_weights(q, b), blocks.d)[:, :, 0]

        return sum_over(blocks.lane_blocks, part)

    out = stack_over(blocks.row_blocks, of_rows)  # [row blocks, block rows, shared, out]
    out = out.reshape(-1, *out.shape[2:])[: blocks.groups * blocks.rows]
    return out.reshape(blocks.groups, blocks.rows, *out.shape[1:]).swapaxes(1, 2)


def op_dot(
    keys,
    x,
    sigma,
    cotangent,
    *,
    op: str,
    noise: str,
    inner: int,
    stream: Stream = THREEFRY,
    block: int | None = None,
) -> jax.Array:
    """<op(x + sigma z_s), g> per sample: g [groups, shared, rows, out] -> [groups, shared, N]."""
    math = op_math(op)
    if not math.streamed:
        codes = samples(keys, x, sigma, op=op, noise=noise, inner=inner, stream=stream, block=block)
        return math.dot(codes, cotangent)
    blocks = _Blocks(keys, x, sigma, op, noise, inner, stream, block)
    g = blocks.by_row(cotangent)

    def part(q, b):
        return math.dot(blocks.codes(q, b)[:, :, None], g[q][:, :, None])

    out = stack_over(
        blocks.row_blocks, lambda q: stack_over(blocks.lane_blocks, lambda b: part(q, b))
    )
    return jnp.sum(blocks.join(out), 1)


def _per_row(blocks: _Blocks, weights: jax.Array) -> Callable:
    """(q, b) -> weights [block rows, shared, lanes] of that block; padded samples weigh zero."""
    weights = pad_to(weights, blocks.lane_blocks * blocks.lanes, 2)

    def at(q, b):
        row = q * blocks.block_rows + jnp.arange(blocks.block_rows, dtype=jnp.int32)
        group = jnp.minimum(row, blocks.groups * blocks.rows - 1) // blocks.rows
        return lax.dynamic_slice_in_dim(weights, b * blocks.lanes, blocks.lanes, 2)[group]

    return at
