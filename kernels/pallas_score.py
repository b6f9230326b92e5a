"""Score products in fused kernels: `S t` and `S^T w` for any `fun`, with S never stored.

Operands as in `xla_score.py`; layout as in `pallas_ops.py`, elements along axis 0 of a tile and
samples along axis 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.blocks import cut, pad_to, split
from perturbk.kernels.draws import Draws
from perturbk.kernels.pallas import launch, machine, power_of_two, program_for
from perturbk.kernels.pallas_words import SampleWords
from perturbk.kernels.streams import THREEFRY, Counter, Stream
from perturbk.kernels.tuning import TUNING


def _tile_of(count: int, times: int) -> int:
    """Cells of a tile, a power of two: many, but few behind the last."""
    most = power_of_two(min(count, TUNING.kernel_tile * times))
    tiles = [most >> i for i in range(most.bit_length()) if most >> i >= min(most, times)]
    return min(
        tiles, key=lambda tile: -(-count // tile) * (tile + TUNING.kernel_tile_start * times)
    )


class _Cells:
    """The elements of a leaf in tiles of cells: a cell is what the stream draws together."""

    def __init__(
        self,
        size: int,
        num_samples: int,
        *,
        noise: str,
        order: int,
        power: int,
        platform: str,
        stream: Stream,
    ):
        self.size, self.noise, self.stream = size, noise, stream
        self.order, self.power, self.machine = order, power, machine(platform)
        self.cell = 4 if stream.in_fours(1) else 1
        self.rows, self.length = stream.rows(size)
        self.per_row = -(-self.length // self.cell)
        self.count = self.rows * self.per_row
        self.program = program_for(num_samples)
        self.tile = _tile_of(self.count, self.program.times)
        self.tiles = -(-self.count // self.tile)
        math = stream.math(noise, self.machine)
        has_quick = math.quick_moments and power == 0 and self.cell % math.together == 0
        self.quick = math.quick_moments(order) if has_quick else None

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

    def values(self, words: Counter, t) -> tuple[jax.Array, ...]:
        """Of tile t for one tile of samples: `cell` arrays [tile, lanes], of `quick` or else of
        h_m(z) z^n."""
        at = lax.broadcasted_iota(jnp.int32, (self.tile, words[0].shape[1]), 0)
        at = at + t * np.int32(self.tile)
        row, place = jnp.int32(0), at
        if self.rows > 1:
            row, place = lax.div(at, np.int32(self.per_row)), lax.rem(at, np.int32(self.per_row))
        draws = Draws(self.stream, self.noise, words, row, self.length, 1, self.machine)
        if self.quick:
            bits = draws.bits_four(place) if self.cell == 4 else (draws.bits(place),)
            return self.quick.values(bits, self.machine)
        drawn = draws.drawn_four(place) if self.cell == 4 else [draws.drawn(place)]
        return tuple(draws.math.moment(a, self.order, self.power) for a in drawn)

    def moments(
        self, values: Sequence[jax.Array], factor: jax.Array | np.float32
    ) -> Sequence[jax.Array]:
        """factor * h_m(z) z^n, from factor times `values`; sums of many likewise."""
        return self.quick.of_values(values, factor, self.machine) if self.quick else values

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
    which = dict(noise=noise, order=order, power=power, platform=platform, stream=stream)
    cells = _Cells(size, num_samples, **which)
    lanes, warps = cells.program.lanes, cells.program.warps
    tile, lane_blocks = cells.tile, -(-num_samples // lanes)
    blocks, together = cells.together(shared)
    pieces, piece = cut(cells.tiles, TUNING.kernel_piece_tiles, lane_blocks * warps)
    fma = cells.machine.fma

    sample_words = SampleWords(keys, stream, lane_blocks * lanes, lanes)

    def body(keys_ref, v_ref, out_ref):
        first = pl.program_id(2) * piece
        words = sample_words.of_run(keys_ref, pl.program_id(1))(pl.ds(0, lanes))

        def add(t, totals):
            moments = cells.moments(cells.values(words, t), np.float32(1))
            for i, moment in enumerate(moments):
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
        [sample_words.operand, v],
        [
            sample_words.spec(lambda p, b, c: (p // blocks, b)),
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
    which = dict(noise=noise, order=order, power=power, platform=platform, stream=stream)
    cells = _Cells(size, num_samples, **which)
    lanes, warps = cells.program.lanes, cells.program.warps
    blocks, together = cells.together(shared)
    fma = cells.machine.fma
    tile, lane_tiles = cells.tile, -(-num_samples // lanes)
    run_tiles = max(-(-lane_tiles // TUNING.kernel_runs), TUNING.kernel_run_tiles)
    run_tiles = min(run_tiles, lane_tiles)
    runs = -(-lane_tiles // run_tiles)
    run, height = run_tiles * lanes, cells.cell * tile

    sample_words = SampleWords(keys, stream, runs * run, run)

    def body(keys_ref, w_ref, out_ref):
        t = pl.program_id(1)
        words_at = sample_words.of_run(keys_ref, pl.program_id(2))

        def add(i, carry):
            totals, all_weights = carry
            lane = pl.ds(i * lanes, lanes)
            values = cells.values(words_at(lane), t)
            weights = [w_ref[s : s + 1, lane] for s in range(together)]
            totals = tuple(
                tuple(fma(w, value, a) for a, value in zip(of_vector, values, strict=True))
                for w, of_vector in zip(weights, totals, strict=True)
            )
            return totals, tuple(map(jnp.add, all_weights, weights))

        zero, none = jnp.zeros((tile, lanes), jnp.float32), jnp.zeros((1, lanes), jnp.float32)
        start = ((zero,) * cells.cell,) * together, (none,) * together
        totals, all_weights = lax.fori_loop(0, run_tiles, add, start)
        for s, (of_vector, weight) in enumerate(zip(totals, all_weights, strict=True)):
            for i, total in enumerate(cells.moments(of_vector, weight)):
                out_ref[s, pl.ds(i * tile, tile), :] = jnp.sum(total, 1, keepdims=True)

    out = launch(
        body,
        [sample_words.operand, pad_to(_in_blocks(w, blocks, together), runs * run, 2)],
        [
            sample_words.spec(lambda p, t, b: (p // blocks, b)),
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
