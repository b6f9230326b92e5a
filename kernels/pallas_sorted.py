"""Ranks, or values in order, in a fused kernel, by sorting tiles.

Many threads hold a row, and memory its sorted words. For ranks, words hold levels and coordinates,
as in `pallas_network`, and the place of each is stored at its coordinate. Where two of a tile share
a level, and in rows so long that some always would, whole keys are sorted. Each key of the row then
looks up, by bisection, how many are smaller. Where no two are equal these are the ranks. Where some
are, the keys of a second round are these numbers with the coordinates below them, of which no two
are equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels import bitonic
from perturbk.kernels.pallas_network import level_word
from perturbk.kernels.pallas_rows import Pair, summed

_LARGEST = np.int32(0x7FFFFFFF)


def values(sort_key: Callable[[jax.Array], jax.Array]) -> Callable[..., tuple]:
    """(row, ref to t) -> (its sort keys in ascending order; <h_1(z), t> [1, lanes]).

    Of the pieces of a row, row r of piece i holds number r * pieces + i.
    """

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        pieces, product = _drawn(row, tangent_ref)
        keys = _keys(row, pieces, sort_key)
        memory = _Memory(row, keys)
        memory.sort(keys)
        count = len(keys)
        first = lax.broadcasted_iota(jnp.int32, keys[0].shape, 0) * np.int32(count)
        found = [memory[first + np.int32(i)] for i in range(count)]
        row.draws.machine.barrier()
        return tuple(found), product

    return of_row


def ranks(sort_key: Callable[[jax.Array], jax.Array], *, descending: bool) -> Callable[..., tuple]:
    """(row, ref to t) -> (its stable ranks, piece by piece, int32; <h_1(z), t> [1, lanes]).

    Args:
        sort_key: one of `ranking.SORT_KEYS`.
        descending: whether it puts large values first.
    """

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        pieces, product = _drawn(row, tangent_ref)
        if row.aid is None:
            return _by_keys(row, pieces, sort_key), product

        def by_keys():  # draws again: in registers the values would lie there all the time
            return _by_keys(row, _drawn(row)[0], sort_key)

        return _by_levels(row, pieces, descending, by_keys), product

    return of_row


def _drawn(row, tangent_ref=None) -> tuple[list[Pair], jax.Array]:
    """(values and coordinates of each piece of a row, <h_1(z), t> [1, lanes])."""
    pieces, product = row.pieces(0, tangent_ref)
    return pieces, summed(jnp.broadcast_to(product, pieces[0][0].shape))


def _keys(row, pieces: Sequence[Pair], sort_key) -> list[jax.Array]:
    """Sort keys; those behind the end of the row are the last of their equals."""
    return [jnp.where(at < row.d, sort_key(y), _LARGEST) for y, at in pieces]


class _Memory:
    """A program's memory, for a word of every place of each lane's row."""

    def __init__(self, row, tiles: Sequence[jax.Array]):
        self.ref, self.machine, self.lanes = row.scratch_ref, row.draws.machine, row.lanes
        height = tiles[0].shape[0]
        self.lane = lax.broadcasted_iota(jnp.int32, tiles[0].shape, 1)
        self.across = min(height, row.threads // self.lanes)
        self.places = bitonic.places(len(tiles), height, self.across)

    def _at(self, place: jax.Array) -> jax.Array:
        return place * np.int32(self.lanes) + self.lane

    def __getitem__(self, place: jax.Array) -> jax.Array:
        return self.ref[self._at(place)]

    def __setitem__(self, place: jax.Array, word: jax.Array) -> None:
        self.ref[self._at(place)] = word

    def sort(self, words: Sequence[jax.Array]) -> Sequence[jax.Array]:
        """The words, each lane's by itself, along `places`, where they are stored too."""
        tiles = self.machine.ascending_rows(words, self.across)
        for place, tile in zip(self.places, tiles, strict=True):
            self[place] = tile
        self.machine.barrier()
        return tiles


def _by_levels(
    row, pieces: Sequence[Pair], descending: bool, otherwise: Callable[[], tuple]
) -> tuple[jax.Array, ...]:
    """The ranks from one sort, or otherwise, if two of a row share a level."""
    bits = (row.tile - 1).bit_length()
    below, end = np.int32((1 << bits) - 1), np.int32(row.d - 1)
    words = [
        jnp.where(
            at < row.d,
            level_word(row, y, at, bits=bits, descending=descending),
            at | (_LARGEST - below),
        )
        for y, at in pieces
    ]
    memory = _Memory(row, words)
    in_order = list(zip(memory.places, memory.sort(words), strict=True))
    doubt = jnp.broadcast_to(row.aid[2, 0], words[0].shape)
    for place, word in in_order:
        following = memory[jnp.minimum(place + 1, np.int32(row.tile - 1))]
        apart = lax.bitcast_convert_type(word ^ following, jnp.uint32)
        shared = (apart <= below.astype(np.uint32)) & (place < end)
        doubt = jnp.where(shared, np.float32(1), doubt)
    memory.machine.barrier()

    def scattered() -> tuple[jax.Array, ...]:
        for place, word in in_order:
            rank = end - place if descending else place
            memory[word & below] = jnp.broadcast_to(rank, word.shape)
        memory.machine.barrier()
        found = tuple(memory[at] for _, at in pieces)
        memory.machine.barrier()
        return found

    return lax.cond(jnp.max(jnp.max(doubt, 0)) > 0, otherwise, scattered)


def _by_keys(row, pieces: Sequence[Pair], sort_key) -> tuple[jax.Array, ...]:
    """The ranks by bisection."""
    keys, coordinates = _keys(row, pieces, sort_key), [at for _, at in pieces]
    real = [at < row.d for at in coordinates]
    bits = np.int32((row.tile - 1).bit_length())

    def turn(carry):
        words, _, number = carry
        places = _smaller(words, row)
        words = [(p << bits) | at for p, at in zip(places, coordinates, strict=True)]
        again = _some_are_equal(places, real, row.d) & (number == 1)
        return words, places, jnp.where(again, np.int32(2), np.int32(0))

    start = keys, [jnp.zeros_like(key) for key in keys], np.int32(1)
    _, found, _ = lax.while_loop(lambda carry: carry[2] > 0, turn, start)
    return tuple(found)


def _some_are_equal(places, real, d: int) -> jax.Array:
    """Whether in any lane places are shared, which makes their sum less than that of all."""
    kept = (jnp.where(r, p, np.int32(0)) for r, p in zip(real, places, strict=True))
    return jnp.min(jnp.sum(functools.reduce(jnp.add, kept), 0)) < np.int32(d * (d - 1) // 2)


def _smaller(words: Sequence[jax.Array], row) -> list[jax.Array]:
    """For each word, how many of its lane's are smaller."""
    memory = _Memory(row, words)
    memory.sort(words)
    lanes = np.int32(row.lanes)

    def halve(i, found):
        step = np.int32(row.tile // 2 * row.lanes) >> i
        return [
            at + jnp.where(memory.ref[at + (step - lanes)] < word, step, np.int32(0))
            for at, word in zip(found, words, strict=True)
        ]

    # The places in memory, which are as many rows behind the first as words are smaller.
    start = [memory.lane] * len(words)
    found = lax.fori_loop(0, row.tile.bit_length() - 1, halve, start)
    memory.machine.barrier()
    return [at >> np.int32(row.lanes.bit_length() - 1) for at in found]
