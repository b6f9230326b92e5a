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
from perturbk.kernels.threefry import keyed_rounds
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
        platform: "tpu", or "cpu" to interpret.
    """

    planes: int
    d: int
    num_samples: int
    inner: int = 1
    whole: bool = False
    platform: str = "tpu"

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
        """Coordinates drawn together: independent, so that they hide each other's latency.

        Of the sizes that do so well enough, the one that leaves the last step fullest.
        """
        n = min(self.segment, self.piece)
        most = min(TUNING.tpu_step if self.platform == "tpu" else TUNING.tpu_step_interpreted, n)
        return min(range(most, most // 2, -1), key=lambda u: -n % u)

    @property
    def steps(self) -> int:
        """Steps in a piece."""
        return -(-min(self.segment, self.piece) // self.step)

    @property
    def drawn(self) -> int:
        """Coordinates of a piece that are drawn, those behind its end included."""
        return self.steps * self.step

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
        per_row, per_entry = self.per_row, np.int32(self.planes // entries)

        def index(i, b, c):
            # Not i // per_entry: the sign that it takes lowers for a named chip only.
            return (lax.div(i, per_entry) * per_row + b if self.aligned else i, 0, 0, 0)

        return pl.BlockSpec((None, k, *VECTOR), index)

    @property
    def unit_spec(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.height, LANES), lambda i, b, c: (i, 0, 0))

    @property
    def coordinate_spec(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.height, self.piece), lambda i, b, c: (i, 0, c))

    def tile_spec(self, *stack: int) -> pl.BlockSpec:
        """One vector, or a stack of them, for each vector of samples."""
        rest = (0,) * (len(stack) + 2)
        index = lambda i, b, c: (i * self.per_row + b, *rest)  # noqa: E731
        return pl.BlockSpec((None, *stack, *VECTOR), index)

    def tile_shape(self, dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.row_tiles * self.per_row, *VECTOR), dtype)

    # --- inside a kernel ------------------------------------------------------------------------

    def bits(self, keys_ref, base_ref) -> Callable[[jax.Array], list[jax.Array]]:
        """first coordinate -> random bits of a step's coordinates, a vector of units for each.

        The bits are those of `element_bits`. What does not change from step to step, the key word
        and the element index of the unit, is added to the counter beforehand.
        """
        k0, k1 = keys_ref[0], keys_ref[1]
        origin = k1 + jnp.broadcast_to(base_ref[...], VECTOR).astype(jnp.uint32)

        def draw(first: jax.Array) -> list[jax.Array]:
            start = origin + (first * np.int32(self.inner)).astype(jnp.uint32)
            counters = [start + wrapped(u * self.inner).astype(np.uint32) for u in range(self.step)]
            words = [keyed_rounds(k0, k1, k0, counter) for counter in counters]
            return [a ^ b for a, b in words]

        return draw

    def columns(self, ref, q: jax.Array) -> list[jax.Array]:
        """The coordinates of step q of a block, each spread over the lanes."""
        tiles = ref.shape[1] // LANES
        first = q * np.int32(self.step)
        shift = lax.rem(first, np.int32(LANES))
        if tiles == 1:
            tile = jnp.broadcast_to(ref[...], VECTOR)
        else:  # a step may reach into the next tile of lanes
            at = lax.div(first, np.int32(LANES))
            this, following = (
                ref[:, pl.ds(pl.multiple_of(i * np.int32(LANES), LANES), LANES)]
                for i in (at, jnp.minimum(at + np.int32(1), np.int32(tiles - 1)))
            )
            lane = lax.broadcasted_iota(jnp.int32, VECTOR, 1)
            this, following = (jnp.broadcast_to(a, VECTOR) for a in (this, following))
            tile = jnp.where(lane < shift, following, this)
        tile = roll(tile, lax.rem(np.int32(LANES) - shift, np.int32(LANES)), 1)
        return [jnp.broadcast_to(tile[:, u : u + 1], VECTOR) for u in range(self.step)]

    def over_steps(self, turn: Callable, carry):
        """carry = turn(q, carry) for each step q of a piece."""
        return lax.fori_loop(np.int32(0), np.int32(self.steps), turn, carry)

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
            platform=self.platform,
            **kwargs,
        )
