"""What a fused kernel sees of a row, tile by tile."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.draws import Draws


@dataclasses.dataclass(frozen=True)
class Part:
    """Neighbours in a column in memory, to be indexed as if they were a ref [size, 1].

    Attributes:
        ref: to the column, which holds several parts.
        first: where this one begins.
        size: how many.
    """

    ref: object
    first: int
    size: int

    def __getitem__(self, at: tuple[object, object]) -> jax.Array:
        rows, column = at
        if isinstance(rows, pl.Slice):
            rows = pl.ds(rows.start + self.first, rows.size, rows.stride)
        else:
            rows = rows + self.first
        return self.ref[rows, column]


@dataclasses.dataclass(frozen=True)
class Aid:
    """What a kernel needs to know of all rows beside x and sigma.

    Attributes:
        columns: each [groups, shared, rows, k], of which a row's kernel sees a `Part` of k.
        of_refs: makes `Row.aid` of these parts.
        tile: coordinates that are drawn together, `in_fours`, if the kernel draws by itself and
            does not leave it to the `Row`.
    """

    columns: tuple[jax.Array, ...]
    of_refs: Callable[..., object]
    tile: int | None = None


def fill_to(a: jax.Array, multiple: int, fill: float) -> jax.Array:
    """Pads the last axis to a multiple."""
    widths = [(0, 0)] * (a.ndim - 1) + [(0, -a.shape[-1] % multiple)]
    return jnp.pad(a, widths, constant_values=fill)


def in_fours(a: jax.Array, tile: int) -> jax.Array:
    """The last axis in the order in which fours are drawn: of each tile all firsts, and so on."""
    fours = a.reshape(*a.shape[:-1], -1, tile // 4, 4)
    return fours.swapaxes(-1, -2).reshape(a.shape)


def _one_above_the_other(four: Sequence[jax.Array]) -> jax.Array:
    """Four tiles [height, lanes] -> [4 * height, lanes].

    Each thread keeps what it has, if it has the same of every tile.
    """
    a, b, c, d = four
    tile = jnp.stack([jnp.stack([a, c], -1), jnp.stack([b, d], -1)], -1)
    return tile.transpose(2, 3, 0, 1).reshape(4 * a.shape[0], a.shape[1])


def summed(a: jax.Array) -> jax.Array:
    """The sum over the rows of a tile: [height, lanes] -> [1, lanes]."""
    return a if a.shape[0] == 1 else jnp.sum(a, 0, keepdims=True)


def column_at(first, size: int) -> tuple[object, object]:
    """Neighbours in a column, to index a ref.

    A single value is loaded as such: every tensor in memory costs Triton a search through the whole
    kernel when it compiles.
    """
    return (first, 0) if size == 1 else (pl.ds(first, size), slice(None))


Pair = tuple[jax.Array, jax.Array]  # what decides, and an index


def insert(kept: Sequence[Pair], new: Pair, *, by_index: bool = False) -> tuple[Pair, ...]:
    """The largest of all, in descending order, as are those kept; the last makes room.

    Of equals the earlier comes first, or the one with the lower index.
    """
    found = []
    value, index = new  # and then what makes way
    for here, at in kept:
        wins = new[0] > here
        if by_index:
            wins |= (new[0] == here) & (new[1] < at)
        found.append((lax.max(value, here), jnp.where(wins, index, at)))
        value, index = lax.min(value, here), jnp.where(wins, at, index)
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Row:
    """One perturbed row in a kernel, or a piece of one, tile by tile, for one tile of samples."""

    x_ref: Part
    sigma_ref: Part  # of one value if it is the same for all coordinates
    draws: Draws  # its words are [1, lanes]
    d: int  # of the whole row
    length: int  # of the piece
    first: object  # coordinate of the piece, a multiple of four; None if it is the whole row
    tile: int
    out_tile: int  # outputs that are made at a time
    fours: bool  # whether the columns of x and sigma are laid out for `pieces` in fours
    aid: object = None  # what the kernel's `Aid` makes of its columns
    scratch_ref: object = None  # int32, words for all tiles of a row, if the kernel asks for it
    threads: int = 1  # of a program

    @property
    def num_tiles(self) -> int:
        return -(-self.length // self.tile)

    @property
    def lanes(self) -> int:
        return self.draws.words[0].shape[1]

    @property
    def width(self) -> int:
        """Coordinates with the padding at the end."""
        return self.num_tiles * self.tile

    def coordinates(self, t, tile: int | None = None) -> jax.Array:
        """int32 [tile, 1] coordinates of tile t of a whole row."""
        tile = tile or self.tile
        return lax.broadcasted_iota(jnp.int32, (tile, 1), 0) + t * np.int32(tile)

    def cells(self, t, count: int, together: int) -> jax.Array:
        """int32 [count, lanes] of tile t: which neighbours in the row, if so many are one."""
        at = self.coordinates(t, count)
        if self.first is not None:
            at = at + lax.div(self.first, np.int32(together))
        return jnp.broadcast_to(at, (count, self.lanes))

    def perturbed(self, t, tile: int | None = None) -> jax.Array:
        """x + sigma z of tile t: float32 [tile, lanes]; -inf behind the end of the row."""
        tile = tile or self.tile
        at = pl.ds(t * tile, tile)
        coordinate = jnp.broadcast_to(self.coordinates(t, tile), (tile, self.lanes))
        return self._y((at, slice(None)), self.draws(coordinate))

    def _y(self, at, z: jax.Array) -> jax.Array:
        """x + sigma z, at a place in the columns."""
        sigma = self.sigma_ref[0, 0] if self.sigma_ref.size == 1 else self.sigma_ref[at]
        if self.draws.stream.fused:
            return self.draws.machine.fma(sigma, z, self.x_ref[at])
        return self.x_ref[at] + sigma * z

    def value_at(self, coordinate: jax.Array) -> jax.Array:
        """x + sigma z at single coordinates, if columns are laid out in their order."""
        assert self.tile <= 4
        return self._y((coordinate, 0), self.draws(coordinate))

    def pieces(self, t, tangent_ref=None) -> tuple[list[Pair], jax.Array | float]:
        """The same in (values, coordinates), as the stream draws them; and <h_1(z), t> of the tile.

        All of them are [piece, lanes]; the product is to be summed.

        Args:
            t: which tile.
            tangent_ref: laid out as the columns of x and sigma; None for a product of zero.
        """
        drawn = self._drawn_pieces(t)
        product = np.float32(0)
        if tangent_ref is not None:
            moments = (tangent_ref[at] * self.draws.math.moment(a, 1, 0) for _, _, a, at in drawn)
            product = functools.reduce(jnp.add, moments)
        return [(y, coordinate) for y, coordinate, _, _ in drawn], product

    def whole(self, tangent_ref=None) -> tuple[Pair, jax.Array]:
        """((values, coordinates) of a row that is one tile, [tile, lanes]; <h_1(z), t> [1, lanes]).

        In the order of the columns, where fours are not neighbours. tangent_ref: as in `pieces`.
        """
        draws, at = self.draws, self.cells(0, self.tile, 1)
        if self.fours:
            height = self.tile // 4
            drawn = _one_above_the_other(draws.drawn_four(self.cells(0, height, 4)))
            coordinate = (at & np.int32(height - 1)) * np.int32(4)
            coordinate += at >> np.int32(height.bit_length() - 1)
        else:
            drawn, coordinate = draws.drawn(at), at
        # If Triton knew that these are neighbours, one thread would hold several.
        place = draws.machine.opaque(at.astype(jnp.uint32)).astype(jnp.int32), 0
        y = self._y(place, draws.math.variate(drawn))
        product = jnp.zeros((1, self.lanes), jnp.float32)
        if tangent_ref is not None:
            product = summed(tangent_ref[place] * draws.math.moment(drawn, 1, 0))
        return (y, coordinate), product

    def row_of(self, coordinate: jax.Array) -> jax.Array:
        """Which row of the tile of `whole` has a coordinate."""
        if not self.fours:
            return coordinate
        within = coordinate & np.int32(3)
        return within * np.int32(self.tile // 4) + (coordinate >> np.int32(2))

    def _drawn_pieces(self, t) -> list[tuple[jax.Array, jax.Array, jax.Array, object]]:
        """(values, coordinates, what is drawn, its place in the columns) of each piece."""
        count = 4 if self.fours else 1
        piece = self.tile // count
        index = self.cells(t, piece, count)
        drawn = self.draws.drawn_four(index) if self.fours else [self.draws.drawn(index)]
        found = []
        for i, a in enumerate(drawn):
            at = column_at(t * self.tile + i * piece, piece)
            y = self._y(at, self.draws.math.variate(a))
            coordinate = index * np.int32(4) + np.int32(i) if self.fours else index
            found.append((y, coordinate, a, at))
        return found

    def at(self, four: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Values and coordinates 4 * four + (0, 1, 2, 3), each of the shape of `four`."""
        here, piece = four, self.tile // 4 if self.fours else 1
        if self.first is not None:
            here = four - lax.div(self.first, np.int32(4))
        # A four that is nobody's is behind the end. A column has whole fours.
        here = jnp.clip(here, np.int32(0), np.int32(-(-self.length // 4) - 1))
        within = here & np.int32(piece - 1)  # a power of two
        place = (here - within) * np.int32(4) + within
        found = []
        for i, z in enumerate(self.draws.four(four)):
            coordinate, at = four * np.int32(4) + np.int32(i), (place + np.int32(i * piece), 0)
            y = self._y(at, z)
            found.append((jnp.where(coordinate < self.d, y, -np.inf), coordinate))
        return found
