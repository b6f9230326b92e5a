"""A cut of rows as arrays: operands into the layout of `tpu_cut.py`, blocks, and results out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.pallas import launch
from perturbk.kernels.tpu_cut import LANES, SUBLANES, VECTOR, Cut


class Units(Cut):
    """The arrays of a cut, and the launch of a kernel over its grid."""

    # --- operands in, results out ---------------------------------------------------------------

    def by_unit(self, a: jax.Array) -> jax.Array:
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
        return self.by_unit(jnp.pad(a, ((0, 0), (0, 0), (0, width)), constant_values=fill))

    def by_plane(self, a: jax.Array) -> jax.Array:
        """[planes] -> [row tiles, height, lanes], the same in all lanes and segments."""
        shape = (self.planes, self.segments, LANES)
        return self.by_unit(jnp.broadcast_to(a[:, None, None], shape))

    def ends(self) -> jax.Array:
        """int32 [row tiles, height, lanes]: coordinates of each unit, padding not included."""
        end = np.arange(self.segments) * -self.segment + self.d
        end = np.clip(end, 0, self.segment).astype(np.int32)[:, None]
        return self.by_unit(jnp.broadcast_to(end, (self.planes, self.segments, LANES)))

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
        return self.unit_words_spec(1)

    def unit_words_spec(self, words: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.height, words * LANES), lambda i, b, c: (i, 0, 0))

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
