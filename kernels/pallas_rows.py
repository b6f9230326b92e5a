"""What a fused kernel sees of a row, and what each op makes of it, tile by tile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.noise import NOISES
from perturbk.kernels.pallas import opaque
from perturbk.kernels.pallas_argmax import winners
from perturbk.kernels.pallas_ranking import tile_ranks
from perturbk.kernels.ranking import SORT_KEYS
from perturbk.kernels.threefry import element_bits
from perturbk.kernels.tuning import TUNING


@dataclasses.dataclass(frozen=True)
class Row:
    """One perturbed row in a kernel, tile by tile, for one tile of samples."""

    x_ref: object
    sigma_ref: object
    words: tuple[jax.Array, jax.Array]  # key words of the samples, [1, lanes]
    base: jax.Array  # int32 element index of coordinate 0; wraps to the right uint32
    d: int
    inner: int
    tile: int
    noise: str
    platform: str

    @property
    def num_tiles(self) -> int:
        return -(-self.d // self.tile)

    @property
    def width(self) -> int:
        """Coordinates with the padding at the end."""
        return self.num_tiles * self.tile

    def coordinates(self, t, tile: int | None = None) -> jax.Array:
        """int32 [tile, 1] coordinates of tile t."""
        tile = tile or self.tile
        return lax.broadcasted_iota(jnp.int32, (tile, 1), 0) + t * np.int32(tile)

    def perturbed(self, t, tile: int | None = None) -> jax.Array:
        """x + sigma z of tile t: float32 [tile, lanes]; -inf behind the end of the row."""
        tile = tile or self.tile
        at = pl.ds(t * tile, tile)
        element = (self.coordinates(t, tile) * np.int32(self.inner) + self.base).astype(jnp.uint32)
        element = jnp.broadcast_to(element, (tile, self.words[0].shape[1]))
        bits = element_bits(*self.words, opaque(element, self.platform))
        z = NOISES[self.noise].variate(bits)
        return self.x_ref[at, :] + self.sigma_ref[at, :] * z


@dataclasses.dataclass(frozen=True)
class OpKernel:
    """What a fused kernel needs beyond `OpMath`.

    Attributes:
        summary: row -> what all of its outputs need, int32 [1, lanes]; None if nothing. It is the
            code if a code is one number.
        outputs: (row, summary, t) -> outputs of tile t, int32 [tile, lanes].
        tile: most coordinates of a tile.
    """

    summary: Callable[[Row], jax.Array | None]
    outputs: Callable[[Row, jax.Array | None, jax.Array], jax.Array]
    tile: int


def _one_hot(row: Row, winner: jax.Array, t) -> jax.Array:
    return (winner == row.coordinates(t)).astype(jnp.int32)


def _ranking(sort_key: Callable[[jax.Array], jax.Array]) -> OpKernel:
    ranks = tile_ranks(sort_key)
    return OpKernel(lambda row: None, lambda row, _, t: ranks(row, t), TUNING.kernel_ranking_tile)


# A new op with a fused kernel is one line here.
OP_KERNELS: dict[str, OpKernel] = {
    "argmax": OpKernel(winners, _one_hot, TUNING.kernel_tile),
    **{name: _ranking(key) for name, key in SORT_KEYS.items()},
}
