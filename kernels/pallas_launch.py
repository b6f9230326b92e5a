"""How the operands of a fused kernel of an op are cut into blocks, and its codes stored.

Operands are those of `xla.py`. A *plane* is one (group, shared vector, row), or a piece of a row.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.blocks import cut, split
from perturbk.kernels.draws import Draws
from perturbk.kernels.ops import op_math
from perturbk.kernels.pallas import launch, machine, power_of_two, program_for
from perturbk.kernels.pallas_op_kernels import op_kernel
from perturbk.kernels.pallas_pieces import winners
from perturbk.kernels.pallas_rows import Part, Row, column_at, fill_to, in_fours
from perturbk.kernels.pallas_words import SampleWords
from perturbk.kernels.streams import THREEFRY, Stream
from perturbk.kernels.tuning import TUNING

# Parts of a column begin at multiples of this, a sector of memory: neighbours are loaded together.
_ALIGNED = 8


class Launch:
    """Cuts the operands into blocks; one instance per call.

    Args:
        sums: whether the outputs are sums over samples. Then a run of samples has sums of its own,
            and runs are few; else each tile of samples is a run.
    """

    def __init__(
        self,
        keys,
        x,
        sigma,
        *,
        op,
        noise,
        inner,
        platform,
        stream: Stream = THREEFRY,
        sums: bool = False,
    ):
        self.op, self.kernel = op_math(op), op_kernel(op, x.shape[-1])
        self.noise, self.inner, self.platform = noise, inner, platform
        self.stream, self.fours = stream, self.kernel.pieces and stream.in_fours(inner)
        self.groups, self.shared, self.rows, self.d = x.shape
        self.num_samples = keys.shape[-1]
        self.program = self.kernel.program or program_for(self.num_samples, self.kernel.warps)
        self.lanes, times = self.program.lanes, self.program.times
        tiles = -(-self.num_samples // self.lanes)
        self.pieces, self.length = self._cut(tiles)
        self.planes = self.groups * self.shared * self.rows * self.pieces
        together = 4 if self.fours else 1
        tile = self.kernel.tile * times if self.kernel.tile > 1 else 1
        self.tile = max(power_of_two(min(self.length, tile * together)), together)
        self.out = self.op.out_size(self.d)
        self.out_tile = power_of_two(min(self.out, self.kernel.out_tile * times))
        self.out_width = -(-self.out // self.out_tile) * self.out_tile
        few = sums or self.kernel.whole
        self.lane_tiles = -(-tiles // TUNING.kernel_runs) if few else 1  # of a run
        self.runs = -(-tiles // self.lane_tiles)
        most = TUNING.kernel_programs
        if self.kernel.whole:
            most = TUNING.kernel_whole_programs // self.kernel.memory
        most = max(1, most // self.planes)
        self.programs, self.program_runs = split(self.runs, -(-self.runs // most))  # of a plane
        self.padded = self.programs * self.program_lanes
        sigma = jnp.broadcast_to(sigma, (*x.shape[:3], sigma.shape[3]))
        self.of_rows = x, sigma
        x, sigma = self.in_pieces(x, -np.inf), self.in_pieces(sigma, 1)
        parts = [self.drawn(fill_to(x, self.tile, -np.inf)), sigma]
        if sigma.shape[3] > 1:
            parts[1] = self.drawn(fill_to(parts[1], self.tile, 1))
        of_noise = stream.math(noise, machine(platform))
        if not self.fours and of_noise.together > 1:  # words are drawn one by one
            of_noise = dataclasses.replace(of_noise, near=None)
        self.aid = self.kernel.aid(of_noise, x, sigma, times)
        if self.aid:
            # What the loop of the kernel reads comes first: its addresses need no sum.
            parts = [*self.aid.columns, *parts] if self.aid.tile else [*parts, *self.aid.columns]
        self.sizes = [a.shape[3] for a in parts]
        # One operand, which XLA makes in one program.
        column = self.column(jnp.concatenate([fill_to(a, _ALIGNED, 0) for a in parts], 3))
        self.words = SampleWords(keys, stream, self.padded, self.program_lanes)
        self.operands = [self.words.operand, column]
        self.in_specs = [
            self.words.spec(lambda p, b: (p // self.of_group, b)),
            self.column_spec(column.shape[1]),
        ]

    def _cut(self, tiles: int) -> tuple[int, int]:
        """(pieces of a row, length of each): more than one if few warps go through long rows."""
        if self.kernel.best is None:
            return 1, self.d
        rows = self.groups * self.shared * self.rows
        warps = rows * tiles * self.program.warps
        pieces, fours = cut(-(-self.d // 4), TUNING.kernel_piece_least // 4, warps)
        return pieces, 4 * fours if pieces > 1 else self.d

    def in_pieces(self, a: jax.Array, fill: float) -> jax.Array:
        """[groups, shared, rows, d or 1] -> [groups, shared, rows * pieces, length or 1]."""
        if self.pieces == 1:
            return a
        if a.shape[3] == 1:
            return jnp.repeat(a, self.pieces, 2)
        width = self.pieces * self.length
        a = jnp.pad(a, (*[(0, 0)] * 3, (0, width - self.d)), constant_values=fill)
        return a.reshape(*a.shape[:2], -1, self.length)

    @property
    def threads(self) -> int:
        """Of a program."""
        return 32 * self.program.warps

    @property
    def of_group(self) -> int:
        return self.planes // self.groups

    @property
    def program_lanes(self) -> int:
        return self.program_runs * self.lane_tiles * self.lanes

    def sample_spec(self, height: int, planes: int = 1) -> pl.BlockSpec:
        """What belongs to this program's samples, the same for so many planes."""
        return pl.BlockSpec((None, height, self.program_lanes), lambda p, b: (p // planes, 0, b))

    def column_spec(self, width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, width, 1), lambda p, b: (p, 0, 0))

    def column(self, a: jax.Array) -> jax.Array:
        """[groups, shared, rows * pieces, k] -> [planes, k, 1]."""
        return a.reshape(self.planes, -1, 1)

    def drawn(self, a: jax.Array) -> jax.Array:
        """Whole tiles [..., width] in the order in which `Row.pieces` draws them."""
        return in_fours(a, self.tile) if self.fours else a

    def per_sample(self, a: jax.Array) -> jax.Array:
        """Zero-pads the samples."""
        return jnp.pad(a, ((0, 0), (0, 0), (0, self.padded - self.num_samples)))

    def rows_of(self, scratch_ref, keys_ref, column_ref) -> Callable[[object], Row]:
        """This program's row, as a function of the slice of samples."""
        firsts = itertools.accumulate(-(-size // _ALIGNED) * _ALIGNED for size in self.sizes)
        parts = [
            Part(column_ref, first, size)
            for first, size in zip((0, *firsts), self.sizes, strict=False)
        ]
        if self.aid and self.aid.tile:
            *aid_refs, x_ref, sigma_ref = parts
        else:
            x_ref, sigma_ref, *aid_refs = parts
        words_at = self.words.of_run(keys_ref, pl.program_id(1))
        r = lax.rem(pl.program_id(0), np.int32(self.rows * self.pieces))
        first = None
        if self.pieces > 1:
            first = lax.rem(r, np.int32(self.pieces)) * np.int32(self.length)
            r = lax.div(r, np.int32(self.pieces))

        def row(lane) -> Row:
            draws = Draws(
                self.stream,
                self.noise,
                words_at(lane),
                r,
                self.d,
                self.inner,
                machine(self.platform),
            )
            return Row(
                x_ref,
                sigma_ref,
                draws,
                self.d,
                self.length,
                first,
                self.tile,
                self.out_tile,
                self.fours,
                self.aid and self.aid.of_refs(*aid_refs),
                scratch_ref,
                self.threads,
            )

        return row

    def summary(self, row: Row, tangent_ref=None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """(what all outputs need, <h_1(z), t>), as of `OpKernel.summary`."""
        if not self.kernel.summary:
            return (), jnp.float32(0)
        numbers, product = self.kernel.summary(row, tangent_ref)
        if self.kernel.places:
            numbers = machine(self.platform).inverse(numbers, row.threads)
        return numbers, product

    @property
    def summary_shape(self) -> tuple[int, int]:
        """(pieces, height of each)."""
        return (1, self.tile) if self.kernel.whole else (self.out, 1)

    @property
    def adds_up_in_memory(self) -> bool:
        """Whether sums over samples go by `Machine.sums`, which takes a thread for each sample."""
        apart = self.lanes == self.threads and not self.kernel.whole and not self.kernel.outputs
        return apart and machine(self.platform).sums is not None and self.out_width >= 4

    def place(self, i: int, run=0) -> tuple[object, object]:
        """Where the numbers of piece i of a summary lie among all of a run, to index a column."""
        return column_at(run * self.out_width + i, self.summary_shape[1])

    def out_at(self, t, run=0) -> object:
        """The slice of tile t of the outputs among those of all runs."""
        return pl.ds(run * self.out_width + t * self.out_tile, self.out_tile)

    def over_outputs(self, step: Callable, start):
        """step(t, carry) for each tile of outputs."""
        return lax.fori_loop(0, self.out_width // self.out_tile, step, start)

    def over_lanes(self, body: Callable, start=0, run=None):
        """body(lane slice, carry) for each tile of samples of this program, or of one run."""
        runs = self.program_runs if run is None else 1
        first = 0 if run is None else run * self.lane_tiles
        return lax.fori_loop(
            0,
            runs * self.lane_tiles,
            lambda i, carry: body(pl.ds((first + i) * self.lanes, self.lanes), carry),
            start,
        )

    def over_runs(self, body: Callable) -> None:
        """body(run) for each run of this program."""
        if self.program_runs == 1:
            body(0)
        else:
            lax.fori_loop(0, self.program_runs, lambda run, _: body(run), None)

    def tangent(self, t: jax.Array) -> jax.Array:
        """[groups, shared, rows, d] as a column in the order in which the kernel draws."""
        t = self.in_pieces(t, 0)
        tile = self.aid and self.aid.tile
        if tile:
            return self.column(in_fours(fill_to(t, tile, 0), tile))
        return self.column(self.drawn(fill_to(t, self.tile, 0)))

    @property
    def numbers(self) -> tuple[int, int]:
        """(turns, numbers in each) in which the code of a sample is stored."""
        return split(math.prod(self.op.code_shape(self.d)), TUNING.kernel_stores)

    @property
    def codes(self) -> tuple[pl.BlockSpec, jax.ShapeDtypeStruct]:
        """Where codes are stored: those of a sample side by side if many threads have them."""
        dtype = self.op.code_dtype(self.d)
        if self.kernel.whole:
            size = self.program_lanes * self.out_width
            spec = pl.BlockSpec((None, size), lambda p, b: (p, b))
            return spec, jax.ShapeDtypeStruct((self.planes, self.padded * self.out_width), dtype)
        height = math.prod(self.numbers) if self.kernel.summary else self.out_width
        return self.sample_spec(height), jax.ShapeDtypeStruct(
            (self.planes, height, self.padded), dtype
        )

    def store(self, numbers: tuple[jax.Array, ...], out_ref, lane: pl.Slice) -> None:
        """Stores the code of a tile of samples."""
        if self.kernel.whole:
            (tile,) = numbers
            row, column = (lax.broadcasted_iota(jnp.int32, tile.shape, axis) for axis in (0, 1))
            at = (lane.start + column) * np.int32(self.out_width) + row
            out_ref[at] = tile.astype(out_ref.dtype)
            return
        turns, count = self.numbers
        rest = (jnp.zeros_like(numbers[0]),) * (turns * count - len(numbers))

        def turn(t, queue):
            for u in range(count):
                out_ref[pl.ds(t * count + u, 1), lane] = queue[u].astype(out_ref.dtype)
            return (*queue[count:], *queue[:count])

        lax.fori_loop(0, turns, turn, numbers + rest)

    def joined(self, codes: jax.Array, keys: jax.Array) -> jax.Array:
        """What was stored as [groups, shared, rows, *code, N]."""
        shape = self.op.code_shape(self.d)
        if self.kernel.whole:
            codes = codes.reshape(self.planes, self.padded, self.out_width).swapaxes(1, 2)
        codes = codes[:, : math.prod(shape), : self.num_samples]
        if self.pieces == 1:
            return codes.reshape(self.groups, self.shared, self.rows, *shape, self.num_samples)
        codes = codes.reshape(self.groups, self.shared, self.rows, -1, self.num_samples)
        return winners(
            codes,
            keys,
            *self.of_rows,
            pieces=self.pieces,
            length=self.length,
            best=self.kernel.best,
            noise=self.noise,
            inner=self.inner,
            stream=self.stream,
        )

    def run(self, body, name: str, extra, extra_spec, out_specs, out_shapes) -> list[jax.Array]:
        """The outputs of body(ref to scratch or None, refs to operands and outputs)."""
        if self.kernel.whole:
            size = (self.kernel.memory * self.tile + 1) * self.lanes
            spec = pl.BlockSpec((None, None, size), lambda p, b: (p, b, 0))
            shape = jax.ShapeDtypeStruct((self.planes, self.programs, size), jnp.int32)
            out_specs, out_shapes = [*out_specs, spec], [*out_shapes, shape]
        found = launch(
            lambda *refs: body(refs[-1], *refs[:-1]) if self.kernel.whole else body(None, *refs),
            [*self.operands, *extra],
            [*self.in_specs, *extra_spec],
            out_specs,
            out_shapes,
            grid=(self.planes, self.programs),
            name=name,
            platform=self.platform,
            warps=self.program.warps,
        )
        return found[:-1] if self.kernel.whole else found
