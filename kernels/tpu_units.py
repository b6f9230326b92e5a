"""How the fused TPU kernels cut their work: eight units of 128 samples make one vector.

A TPU's vector has 8 sublanes of 128 lanes. Here a lane is a sample, and a sublane a *unit*: one
plane (group, shared vector, row), one segment of its coordinates, 128 of its samples. The
coordinates follow each other in time, so that the key words stay in registers and nothing is
reduced across a vector but at the end of a row.

A *row tile* is eight units. If the samples of one plane fill whole vectors, its units have
everything but the samples in common, and its operands are kept once (`height` 1); otherwise they
are repeated for each unit (`height` 8), and a single short row is cut into segments, so that few
sublanes stay empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.pallas import launch, roll
from perturbk.kernels.threefry import element_bits
from perturbk.kernels.tuning import TUNING

LANES = 128
SUBLANES = 8
VECTOR = (SUBLANES, LANES)


def wrapped(n: int) -> np.int32:
    """n modulo 2**32, as the int32 of the same bits."""
    return np.uint32(n % (1 << 32)).astype(np.int32)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Units:
    """The cut of `planes` rows of `d` coordinates under `num_samples` samples.

    Attributes:
        inner: distance between neighbouring coordinates of a row in its leaf.
        whole: keep rows in one piece, for ops that need all of it at once.
    """

    planes: int
    d: int
    num_samples: int
    inner: int = 1
    whole: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of 128 samples in a plane."""
        return -(-self.num_samples // LANES)

    @property
    def aligned(self) -> bool:
        return self.blocks % SUBLANES == 0 or self.blocks >= TUNING.tpu_aligned_from

    @property
    def height(self) -> int:
        return 1 if self.aligned else SUBLANES

    @property
    def segments(self) -> int:
        if self.whole or self.aligned:
            return 1
        spare = SUBLANES // (self.planes * self.blocks)
        return max(1, min(spare, self.d // TUNING.tpu_segment_least))

    @property
    def segment(self) -> int:
        """Coordinates in a segment."""
        return -(-self.d // self.segments)

    @property
    def per_row(self) -> int:
        """Vectors of samples in a row tile."""
        return -(-self.blocks // SUBLANES) if self.aligned else 1

    @property
    def row_tiles(self) -> int:
        if self.aligned:
            return self.planes
        return -(-self.planes * self.segments * self.blocks // SUBLANES)

    @property
    def pieces(self) -> int:
        return 1 if self.whole else -(-self.segment // TUNING.tpu_piece)

    @property
    def piece(self) -> int:
        """Coordinates in a piece, which one program handles."""
        return _up(-(-self.segment // self.pieces), LANES)

    @property
    def step(self) -> int:
        """Coordinates drawn together, enough of them to hide the latency of each."""
        return min(TUNING.tpu_step, self.segment)

    @property
    def steps(self) -> int:
        """Steps in a piece."""
        return -(-min(self.segment, self.piece) // self.step)

    # --- operands in, results out ---------------------------------------------------------------

    def _by_unit(self, a: jax.Array) -> jax.Array:
        """[planes, segments, k] -> [row tiles, height, k]."""
        if self.aligned:
            return a
        a = jnp.repeat(a.reshape(-1, a.shape[2]), self.blocks, axis=0)
        a = jnp.pad(a, ((0, self.row_tiles * SUBLANES - a.shape[0]), (0, 0)))
        return a.reshape(self.row_tiles, SUBLANES, -1)

    def by_coordinate(self, a: jax.Array, fill: float) -> jax.Array:
        """[planes, d] -> [row tiles, height, pieces * piece], filled up at the ends of segments."""
        a = jnp.pad(a, ((0, 0), (0, self.segments * self.segment - self.d)), constant_values=fill)
        a = a.reshape(self.planes, self.segments, self.segment)
        width = self.pieces * self.piece - self.segment
        return self._by_unit(jnp.pad(a, ((0, 0), (0, 0), (0, width)), constant_values=fill))

    def by_plane(self, a: jax.Array) -> jax.Array:
        """[planes] -> [row tiles, height, lanes], the same in all lanes and segments."""
        shape = (self.planes, self.segments, LANES)
        return self._by_unit(jnp.broadcast_to(a[:, None, None], shape))

    def base(self, rows: int) -> jax.Array:
        """int32 [row tiles, height, lanes]: element index of a unit's first coordinate.

        It wraps to the right uint32.
        """
        inner = np.int32(self.inner)
        row = lax.iota(jnp.int32, self.planes)[:, None] % np.int32(rows)
        first = lax.iota(jnp.int32, self.segments)[None] * wrapped(self.segment * self.inner)
        base = row // inner * wrapped(self.d * self.inner) + row % inner
        base = jnp.repeat(base, self.segments, axis=1) + jnp.repeat(first, self.planes, axis=0)
        return self._by_unit(jnp.broadcast_to(base[..., None], (*base.shape, LANES)))

    def by_sample(self, a: jax.Array) -> jax.Array:
        """[entries, k, N] -> [tiles, k, sublanes, lanes]; `sample_spec` finds the tiles again."""
        entries, k, _ = a.shape
        blocks = self.per_row * SUBLANES if self.aligned else self.blocks
        a = jnp.pad(a, ((0, 0), (0, 0), (0, blocks * LANES - self.num_samples)))
        a = a.reshape(entries, k, blocks, LANES).swapaxes(1, 2)
        if not self.aligned:
            a = jnp.repeat(a, self.planes // entries * self.segments, axis=0)
            a = a.reshape(-1, k, LANES)
            a = jnp.pad(a, ((0, self.row_tiles * SUBLANES - a.shape[0]), (0, 0), (0, 0)))
        return a.reshape(-1, SUBLANES, k, LANES).swapaxes(1, 2)

    def from_samples(self, a: jax.Array) -> jax.Array:
        """[tiles, sublanes, lanes] -> [planes, segments, N]."""
        if self.aligned:
            return a.reshape(self.planes, 1, -1)[..., : self.num_samples]
        a = a.reshape(-1, LANES)[: self.planes * self.segments * self.blocks]
        return a.reshape(self.planes, self.segments, -1)[..., : self.num_samples]

    def from_coordinates(self, a: jax.Array) -> jax.Array:
        """[row tiles, sublanes, pieces * piece] sums of each unit -> [planes, d] sums."""
        if not self.aligned:
            a = a.reshape(-1, a.shape[2])[: self.planes * self.segments * self.blocks]
            a = a.reshape(self.planes * self.segments, self.blocks, -1)
        return jnp.sum(a, 1)[:, : self.segment].reshape(self.planes, -1)[:, : self.d]

    # --- blocks of one program; the grid is (row tile, vector of samples, piece) ----------------

    def sample_spec(self, k: int, entries: int) -> pl.BlockSpec:
        per_row, per_entry = self.per_row, self.planes // entries

        def index(i, b, c):
            return (i // per_entry * per_row + b if self.aligned else i, 0, 0, 0)

        return pl.BlockSpec((None, k, *VECTOR), index)

    @property
    def unit_spec(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.height, LANES), lambda i, b, c: (i, 0, 0))

    @property
    def coordinate_spec(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.height, self.piece), lambda i, b, c: (i, 0, c))

    @property
    def tile_spec(self) -> pl.BlockSpec:
        """One vector for each tile of samples."""
        return pl.BlockSpec((None, *VECTOR), lambda i, b, c: (i * self.per_row + b, 0, 0))

    def tile_shape(self, dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.row_tiles * self.per_row, *VECTOR), dtype)

    # --- inside a kernel ------------------------------------------------------------------------

    def bits(self, keys_ref, base_ref) -> Callable[[jax.Array], list[jax.Array]]:
        """first coordinate -> random bits of a step's coordinates, a vector of units for each."""
        words = keys_ref[0], keys_ref[1]
        base = jnp.broadcast_to(base_ref[...], VECTOR)

        def draw(first: jax.Array) -> list[jax.Array]:
            at = [(first + np.int32(u)) * np.int32(self.inner) for u in range(self.step)]
            return [element_bits(*words, (base + a).astype(jnp.uint32)) for a in at]

        return draw

    def columns(self, ref, q: jax.Array) -> list[jax.Array]:
        """The coordinates of step q of a block, each spread over the lanes."""
        if ref.shape[1] == LANES:
            tile, shift = ref[...], q * np.int32(self.step)
        else:
            per = LANES // self.step
            tile = ref[:, pl.ds(pl.multiple_of(lax.div(q, np.int32(per)) * LANES, LANES), LANES)]
            shift = lax.rem(q, np.int32(per)) * np.int32(self.step)
        tile = roll(jnp.broadcast_to(tile, VECTOR), np.int32(LANES) - shift, 1)
        return [jnp.broadcast_to(tile[:, u : u + 1], VECTOR) for u in range(self.step)]

    def launch(self, body, operands, in_specs, out_specs, out_shapes, **kwargs):
        """Runs `body` over the grid (row tile, vector of samples, piece)."""
        return launch(
            body,
            operands,
            in_specs,
            out_specs,
            out_shapes,
            grid=(self.row_tiles, self.per_row, self.pieces),
            semantics=("parallel", "parallel", "arbitrary"),
            **kwargs,
        )

    def launch_sums(self, body, operands, in_specs, **kwargs) -> jax.Array:
        """Runs `body` over the grid (row tile, piece, vector of samples), for sums over samples.

        Returns [row tiles, sublanes, pieces * piece]; a block stays while the samples go by.
        """

        def turned(spec: pl.BlockSpec) -> pl.BlockSpec:
            index_map = spec.index_map
            return pl.BlockSpec(spec.block_shape, lambda i, c, b: index_map(i, b, c))

        return launch(
            body,
            operands,
            [turned(spec) for spec in in_specs],
            pl.BlockSpec((None, SUBLANES, self.piece), lambda i, c, b: (i, 0, c)),
            jax.ShapeDtypeStruct((self.row_tiles, SUBLANES, self.pieces * self.piece), jnp.float32),
            grid=(self.row_tiles, self.pieces, self.per_row),
            semantics=("parallel", "parallel", "arbitrary"),
            **kwargs,
        )
