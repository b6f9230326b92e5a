"""Score products on Triton kernels: what is launched for `S t` and `S^T w`; see `triton_ops.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from perturbk.kernels import triton_score
from perturbk.kernels.blocks import pad_to
from perturbk.kernels.streams import THREEFRY, Stream
from perturbk.kernels.triton import launch
from perturbk.kernels.triton_plan import Draws, cut
from perturbk.kernels.tuning import TUNING


class _Cells:
    """The elements of a leaf in cells, which the stream draws together: rows are padded to them."""

    def __init__(self, words, groups: int, shared: int, size: int, stream: Stream, **static):
        self.size, (self.rows, self.length) = size, stream.rows(size)
        shape = (groups, shared, self.rows, self.length)
        self.draws = Draws.of(words, shape, inner=1, stream=stream, **static)
        self.cell = self.draws.together
        self.per_row = -(-self.length // self.cell)
        self.count = self.rows * self.per_row

    def split(self, v: jax.Array) -> jax.Array:
        """[..., size] -> [planes, count * cell]"""
        v = v.reshape(-1, self.rows, self.length)
        return pad_to(v, self.per_row * self.cell, 2).reshape(len(v), -1)

    def join(self, a: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        a = a.reshape(len(a), self.rows, -1)[:, :, : self.length]
        return a.reshape(len(a), self.size)


def score_dot(
    words, v, *, noise: str, order: int, power: int, platform: str, stream: Stream = THREEFRY
) -> jax.Array:
    """S t: words uint32 [groups, words, N], v [groups, shared, E] -> [groups, shared, N]."""
    groups, shared, size = v.shape
    planes, num_samples = groups * shared, words.shape[2]
    cells = _Cells(words, groups, shared, size, stream, noise=noise, platform=platform)
    turn, least = TUNING.triton_score_unroll, TUNING.triton_piece_least // cells.cell
    loop = cut(cells.count, num_samples, planes, turn=turn, least=least)
    (out,) = launch(
        triton_score.dot,
        [words, pad_to(cells.split(v), loop.width * cells.cell, 1)],
        [jax.ShapeDtypeStruct((planes, loop.pieces, num_samples), jnp.float32)],
        planes=planes,
        name=f"score_dot_{noise}_{order}_{power}",
        platform=platform,
        PER_ROW=cells.per_row,
        ORDER=order,
        POWER=power,
        DRAWS=cells.draws,
        LOOP=loop,
    )
    return jnp.sum(out, 1).reshape(groups, shared, num_samples)


def score_sum(
    words,
    w,
    *,
    size: int,
    noise: str,
    order: int,
    power: int,
    platform: str,
    stream: Stream = THREEFRY,
) -> jax.Array:
    """S^T w: words uint32 [groups, words, N], w [groups, shared, N] -> [groups, shared, size]."""
    groups, shared, num_samples = w.shape
    planes = groups * shared
    cells = _Cells(words, groups, shared, size, stream, noise=noise, platform=platform)
    loop = cut(num_samples, cells.count, planes, turn=TUNING.triton_score_unroll)
    (out,) = launch(
        triton_score.weighted,
        [words, pad_to(w.reshape(planes, num_samples), loop.width, 1)],
        [jax.ShapeDtypeStruct((planes, loop.pieces, cells.count * cells.cell), jnp.float32)],
        planes=planes,
        name=f"score_sum_{noise}_{order}_{power}",
        platform=platform,
        CELLS=cells.count,
        PER_ROW=cells.per_row,
        ORDER=order,
        POWER=power,
        DRAWS=cells.draws,
        LOOP=loop,
    )
    return cells.join(jnp.sum(out, 1)).reshape(groups, shared, size)
