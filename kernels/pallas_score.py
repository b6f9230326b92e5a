"""Score products in fused kernels: `S t` and `S^T w` for any `fun`, with S never stored.

Operands as in `xla_score.py`; layout as in `pallas_ops.py`, elements along axis 0 of a tile and
samples along axis 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.blocks import cut, pad_to, split
from perturbk.kernels.draws import Draws
from perturbk.kernels.pallas import launch, machine, power_of_two, program_for
from perturbk.kernels.streams import THREEFRY, Stream
from perturbk.kernels.tuning import TUNING


class _Cells:
    """The elements of a leaf in tiles of cells: a cell is what the stream draws together."""

    def __init__(self, size: int, num_samples: int, noise: str, stream: Stream, platform: str):
        self.size, self.noise, self.stream, self.platform = size, noise, stream, platform
        self.cell = 4 if stream.in_fours(1) else 1
        self.rows, self.length = stream.rows(size)
        self.per_row = -(-self.length // self.cell)
        self.count = self.rows * self.per_row
        self.program = program_for(num_samples)
        self.tile = power_of_two(min(self.count, TUNING.kernel_tile * self.program.times))
        self.tiles = -(-self.count // self.tile)

    def split(self, v: jax.Array) -> jax.Array:
        """[planes, size] -> [planes, tiles * cell * tile, 1], zero-padded."""
        v = v.reshape(-1, self.rows, self.length)
        v = jnp.pad(v, ((0, 0), (0, 0), (0, self.per_row * self.cell - self.length)))
        v = v.reshape(-1, self.count, self.cell)
        v = jnp.pad(v, ((0, 0), (0, self.tiles * self.tile - self.count), (0, 0)))
        return v.reshape(-1, self.tiles, self.tile, self.cell).swapaxes(2, 3).reshape(len(v), -1, 1)

    def join(self, a: jax.Array) -> jax.Array:
        """The inverse of `split`."""
        a = a.reshape(-1, self.tiles, self.cell, self.tile).swapaxes(2, 3)
        a = a.reshape(len(a), -1, self.cell)[:, : self.count]
        return a.reshape(len(a), self.rows, -1)[:, :, : self.length].reshape(len(a), self.size)

    def moments(self, keys_ref, lane, t, order: int, power: int) -> list[jax.Array]:
        """h_m(z) z^n of tile t for one tile of samples: `cell` arrays [tile, lanes]."""
        words = tuple(keys_ref[i : i + 1, lane] for i in range(self.stream.words_per_sample))
        at = lax.broadcasted_iota(jnp.int32, (self.tile, words[0].shape[1]), 0)
        at = at + t * np.int32(self.tile)
        row, place = jnp.int32(0), at
        if self.rows > 1:
            row, place = lax.div(at, np.int32(self.per_row)), lax.rem(at, np.int32(self.per_row))
        draws = Draws(self.stream, self.noise, words, row, self.length, 1, machine(self.platform))
        if power == 0:
            bits = draws.bits_four(place) if self.cell == 4 else (draws.bits(place),)
            moments = draws.quick_moments(bits, order)
            if moments is not None:
                return list(moments)
        drawn = draws.drawn_four(place) if self.cell == 4 else [draws.drawn(place)]
        return [draws.math.moment(a, order, power) for a in drawn]

    def together(self, shared: int) -> tuple[int, int]:
        """(blocks, vectors in each) of the vectors that see the same noise."""
        return split(shared, max(1, TUNING.kernel_totals // self.cell))


def _in_blocks(a: jax.Array, blocks: int, together: int) -> jax.Array:
    """[groups, shared, n] -> [groups * blocks, together, n], zero-padded."""
    a = pad_to(a, blocks * together, 1)
    return a.reshape(-1, together, a.shape[2])


def score_dot(
    keys, v, *, noise: str, order: int, power: int, platform: str, stream: Stream = THREEFRY
) -> jax.Array:
    """S t: keys uint32 [groups, words, N], v [groups, shared, E] -> [groups, shared, N]."""
    groups, shared, size = v.shape
    num_samples = keys.shape[-1]
    cells = _Cells(size, num_samples, noise, stream, platform)
    lanes, warps = cells.program.lanes, cells.program.warps
    tile, lane_blocks = cells.tile, -(-num_samples // lanes)
    blocks, together = cells.together(shared)
    pieces, piece = cut(cells.tiles, TUNING.kernel_piece_tiles, lane_blocks * warps)
    fma = machine(platform).fma

    def body(keys_ref, v_ref, out_ref):
        first = pl.program_id(2) * piece

        def add(t, totals):
            for i, moment in enumerate(cells.moments(keys_ref, slice(None), t, order, power)):
                at = pl.ds((t * cells.cell + i) * tile, tile)
                totals = tuple(fma(v_ref[s, at, :], moment, a) for s, a in enumerate(totals))
            return totals

        zero = jnp.zeros((tile, lanes), jnp.float32)
        totals = lax.fori_loop(first, first + piece, add, (zero,) * together)
        for s, total in enumerate(totals):
            out_ref[s : s + 1, :] = jnp.sum(total, 0, keepdims=True)

    v = cells.split(_in_blocks(v, blocks, together).reshape(-1, size))
    v = pad_to(v, pieces * piece * cells.cell * tile, 1)
    v = v.reshape(groups * blocks, together, -1, 1)
    out = launch(
        body,
        [pad_to(keys, lane_blocks * lanes, 2), v],
        [
            pl.BlockSpec((None, keys.shape[1], lanes), lambda p, b, c: (p // blocks, 0, b)),
            pl.BlockSpec((None, *v.shape[1:]), lambda p, b, c: (p, 0, 0, 0)),
        ],
        pl.BlockSpec((None, None, together, lanes), lambda p, b, c: (p, c, 0, b)),
        jax.ShapeDtypeStruct((groups * blocks, pieces, together, lane_blocks * lanes), jnp.float32),
        grid=(groups * blocks, lane_blocks, pieces),
        name=f"score_dot_{noise}_{order}_{power}",
        platform=platform,
        warps=warps,
    )
    out = jnp.sum(out, 1)
    return out.reshape(groups, blocks * together, -1)[:, :shared, :num_samples]


def score_sum(
    keys,
    w,
    *,
    size: int,
    noise: str,
    order: int,
    power: int,
    platform: str,
    stream: Stream = THREEFRY,
) -> jax.Array:
    """S^T w: keys uint32 [groups, words, N], w [groups, shared, N] -> [groups, shared, size]."""
    groups, shared, num_samples = w.shape
    cells = _Cells(size, num_samples, noise, stream, platform)
    lanes, warps = cells.program.lanes, cells.program.warps
    blocks, together = cells.together(shared)
    fma = machine(platform).fma
    tile, lane_tiles = cells.tile, -(-num_samples // lanes)
    run_tiles = max(-(-lane_tiles // TUNING.kernel_runs), TUNING.kernel_run_tiles)
    run_tiles = min(run_tiles, lane_tiles)
    runs = -(-lane_tiles // run_tiles)
    run, height = run_tiles * lanes, cells.cell * tile

    def body(keys_ref, w_ref, out_ref):
        t = pl.program_id(1)

        def add(i, totals):
            lane = pl.ds(i * lanes, lanes)
            moments = cells.moments(keys_ref, lane, t, order, power)
            weights = [w_ref[s : s + 1, lane] for s in range(together)]
            return tuple(
                tuple(fma(weight, m, a) for a, m in zip(of_vector, moments, strict=True))
                for weight, of_vector in zip(weights, totals, strict=True)
            )

        zero = jnp.zeros((tile, lanes), jnp.float32)
        totals = lax.fori_loop(0, run_tiles, add, ((zero,) * cells.cell,) * together)
        for s, of_vector in enumerate(totals):
            for i, total in enumerate(of_vector):
                out_ref[s, pl.ds(i * tile, tile), :] = jnp.sum(total, 1, keepdims=True)

    out = launch(
        body,
        [pad_to(keys, runs * run, 2), pad_to(_in_blocks(w, blocks, together), runs * run, 2)],
        [
            pl.BlockSpec((None, keys.shape[1], run), lambda p, t, b: (p // blocks, 0, b)),
            pl.BlockSpec((None, together, run), lambda p, t, b: (p, 0, b)),
        ],
        pl.BlockSpec((None, None, together, height, 1), lambda p, t, b: (p, b, 0, t, 0)),
        jax.ShapeDtypeStruct(
            (groups * blocks, runs, together, cells.tiles * height, 1), jnp.float32
        ),
        grid=(groups * blocks, cells.tiles, runs),
        name=f"score_sum_{noise}_{order}_{power}",
        platform=platform,
        warps=warps,
    )
    out = cells.join(jnp.sum(out, (1, 4)).reshape(groups * blocks * together, -1))
    return out.reshape(groups, blocks * together, size)[:, :shared]
