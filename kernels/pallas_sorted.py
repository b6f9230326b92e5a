"""Ranks, or values in order, in a fused kernel, by sorting tiles.

Many threads hold a row, and memory its sorted words. For ranks, words hold levels and coordinates,
as in `pallas_network`, and the place of each is stored at its coordinate. Where two of a row share
a level, their keys decide, which are found in memory by their coordinates.

Where three share one, and in rows so long that some always would, whole keys are sorted. Each key
of the row then looks up, by bisection, how many are smaller. Where no two are equal these are the
ranks. Where some are, the keys of a second round are these numbers with the coordinates below them,
of which no two are equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels import bitonic
from perturbk.kernels.pallas_network import level_word
from perturbk.kernels.pallas_rows import Pair, summed
from perturbk.kernels.tuning import TUNING

_LARGEST = np.int32(0x7FFFFFFF)
# Pairs of a row whose keys decide, one after the other.
_PAIRS_MOST = np.int32(16)


def values(sort_key: Callable[[jax.Array], jax.Array]) -> Callable[..., tuple]:
    """(row, ref to t) -> (its sort keys in ascending order; <h_1(z), t> [1, lanes]).

    Of the pieces of a row, row r of piece i holds number r * pieces + i.
    """

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        pieces, product = _drawn(row, tangent_ref)
        keys = _to_the_end(row, ((sort_key(y), at) for y, at in pieces))
        memory = _Memory(row, keys)
        memory.sort_to_places(keys)
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
            keys = [(sort_key(y), at) for y, at in pieces]
            return _by_keys(row, keys, _Memory.sort_to_places), product
        return _by_levels(row, pieces, descending, sort_key), product

    return of_row


def _drawn(row, tangent_ref=None) -> tuple[list[Pair], jax.Array]:
    """(values and coordinates of each piece of a row, <h_1(z), t> [1, lanes])."""
    pieces, product = row.pieces(0, tangent_ref)
    return pieces, summed(jnp.broadcast_to(product, pieces[0][0].shape))


def _to_the_end(row, keys: Iterable[Pair]) -> list[jax.Array]:
    """Keys, of which those behind the end of the row are the last of their equals."""
    return [jnp.where(at < row.d, key, _LARGEST) for key, at in keys]


class _Memory:
    """A part of a program's memory: a word for every place of each lane's row, and one more.

    Where a row's words are stored along `slots`, those that many threads store at a time are
    neighbours.
    """

    def __init__(self, row, tiles: Sequence[jax.Array], part: int = 0):
        self.ref, self.machine = row.scratch_ref, row.draws.machine
        self.tile, self.lanes = row.tile, row.lanes
        height = tiles[0].shape[0]
        # If Triton knew of neighbours in memory, one thread would hold several. If addresses were
        # the same for all samples, those of a thread's words would stay in its registers.
        long = row.tile > TUNING.kernel_sorted_kept
        lane = lax.broadcasted_iota(jnp.uint32, (1, self.lanes), 1)
        lane = self.machine.opaque(lane, *row.draws.words if long else ())
        self.lane = lane.astype(jnp.int32) + np.int32(part * self.tile * self.lanes)
        self.across = min(height, row.threads // self.lanes)
        self.places = bitonic.places(len(tiles), height, self.across)
        rows = lax.broadcasted_iota(jnp.int32, (height, 1), 0)
        self.slots = [rows + np.int32(i * height) for i in range(len(tiles))]

    def _at(self, place: jax.Array) -> jax.Array:
        return place * np.int32(self.lanes) + self.lane

    def __getitem__(self, place: jax.Array) -> jax.Array:
        return self.ref[self._at(place)]

    def __setitem__(self, place: jax.Array, word: jax.Array) -> None:
        self.ref[self._at(place)] = word

    def store(self, places: Sequence[jax.Array], words: Sequence[jax.Array]) -> None:
        for place, word in zip(places, words, strict=True):
            self[place] = word
        self.machine.barrier()

    def sort_to_slots(self, words: Sequence[jax.Array]) -> Sequence[jax.Array]:
        """Each lane's by itself, along `places`."""
        words = self.machine.ascending_rows(words, self.across)
        self.store(self.slots, words)
        return words

    def sort_to_places(self, words: Sequence[jax.Array]) -> None:
        self.store(self.places, self.machine.ascending_rows(words, self.across))

    def sort_in_turns(self, words: Sequence[jax.Array]) -> None:
        """The same, slowly, and in little machine code: Batcher's, from step to step in memory."""

        def block(k, words):
            def exchange(i, words):
                step, found = np.int32(1) << (k - i), []
                for place, word in zip(self.slots, words, strict=True):
                    other = self[place ^ step]
                    keeps_low = (place & step == 0) == (place & (np.int32(2) << k) == 0)
                    found.append(jnp.where(keeps_low, lax.min(word, other), lax.max(word, other)))
                self.machine.barrier()
                self.store(self.slots, found)
                return found

            return lax.fori_loop(0, k + 1, exchange, words)

        self.store(self.slots, words)
        lax.fori_loop(0, self.tile.bit_length() - 1, block, list(words))

    def after(self, slot: jax.Array) -> jax.Array:
        """The slot of the next place, or some slot for the last."""
        found = slot + np.int32(self.across)
        return jnp.where(found < self.tile, found, found - np.int32(self.tile - 1))

    def slot(self, place: jax.Array) -> jax.Array:
        """The slot of a place."""
        within = self.tile // self.across
        thread = place >> np.int32(within.bit_length() - 1)
        return (place & np.int32(within - 1)) * np.int32(self.across) + thread


def _by_levels(
    row, pieces: Sequence[Pair], descending: bool, sort_key: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, ...]:
    """The ranks from one sort; by keys if three share a level, or many pairs do."""
    bits = (row.tile - 1).bit_length()
    below, end = np.int32((1 << bits) - 1), np.int32(row.d - 1)
    words = [
        jnp.where(
            at < row.d,
            level_word(row, y, at, bits=bits, descending=descending),
            _LARGEST - ((below - at) << np.int32(bits)),  # levels of their own
        )
        for y, at in pieces
    ]
    memory, values = (_Memory(row, words, part) for part in range(2))
    aside = np.int32(2 * row.tile)  # of the first part
    for y, at in pieces:  # in registers they would lie there all the time
        # Not behind the end: what is not used there is not drawn.
        y = jnp.where(at < row.d, y, np.float32(0))
        values[at] = lax.bitcast_convert_type(y, jnp.int32)
    in_order = memory.sort_to_slots(words)

    def key(at: jax.Array) -> jax.Array:
        return sort_key(lax.bitcast_convert_type(values[at], jnp.float32))

    shared = []  # places, of which the next one shares the level
    for place, slot, word in zip(memory.places, memory.slots, in_order, strict=True):
        apart = lax.bitcast_convert_type(word ^ memory[memory.after(slot)], jnp.uint32)
        shares = (apart <= below.astype(np.uint32)) & (row.aid[2, 0] == 0)
        shared.append(jnp.where(shares, place, _LARGEST))

    def first_of(shared: Sequence[jax.Array]) -> jax.Array:
        return jnp.min(functools.reduce(lax.min, shared), 0, keepdims=True)

    def settle(carry):
        """Of the first two that share a level, the keys decide."""
        shared, place, turns, _ = carry
        apart = place < _LARGEST  # a lane that has two
        here = jnp.where(apart, place, np.int32(0))
        slots = [memory.slot(here + np.int32(i)) for i in range(2)]
        first, second = (memory[slot] for slot in slots)
        mine, others = (key(word & below) for word in (first, second))
        change = apart & ((mine <= others) if descending else (mine > others))
        memory.machine.barrier()
        for slot, word in zip(slots, (second, first), strict=True):
            memory[jnp.where(change, slot, aside)] = word
        shared = [jnp.where(s == place, _LARGEST, s) for s in shared]
        following = first_of(shared)
        three = apart & (following == here + 1)
        return shared, following, turns + 1, jnp.max(jnp.max(three.astype(jnp.int32), 0))

    def unsettled(carry) -> jax.Array:
        _, place, turns, three = carry
        return (jnp.min(jnp.min(place, 0)) < _LARGEST) & (turns < _PAIRS_MOST) & (three == 0)

    start = shared, first_of(shared), np.int32(0), np.int32(0)
    _, place, _, three = lax.while_loop(unsettled, settle, start)
    memory.machine.barrier()

    def by_keys() -> tuple[jax.Array, ...]:
        return _by_keys(row, [(key(at), at) for _, at in pieces], _Memory.sort_in_turns)

    def scattered() -> tuple[jax.Array, ...]:
        for place, slot in zip(memory.places, memory.slots, strict=True):
            at = memory[slot] & below
            values[at] = jnp.broadcast_to(end - place if descending else place, at.shape)
        memory.machine.barrier()
        found = tuple(values[at] for _, at in pieces)
        memory.machine.barrier()
        return found

    left = (jnp.min(jnp.min(place, 0)) < _LARGEST) | (three > 0) | (row.aid[2, 0] > 0)
    return lax.cond(left, by_keys, scattered)


def _by_keys(
    row, pieces: Sequence[Pair], sort: Callable[[_Memory, Sequence[jax.Array]], object]
) -> tuple[jax.Array, ...]:
    """The ranks from (keys, coordinates) of each piece, by bisection.

    sort: stores words in order.
    """
    keys, coordinates = _to_the_end(row, pieces), [at for _, at in pieces]
    real = [at < row.d for at in coordinates]
    bits = np.int32((row.tile - 1).bit_length())
    memory = _Memory(row, keys)

    def turn(carry):
        words, _, number = carry
        sort(memory, words)
        places = _smaller(memory, words)
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


def _smaller(memory: _Memory, words: Sequence[jax.Array]) -> list[jax.Array]:
    """For each word, how many of its lane's, which lie in order, are smaller."""
    lanes = np.int32(memory.lanes)

    def halve(i, found):
        step = np.int32(memory.tile // 2 * memory.lanes) >> i
        return [
            at + jnp.where(memory.ref[at + (step - lanes)] < word, step, np.int32(0))
            for at, word in zip(found, words, strict=True)
        ]

    # The places in memory, which are as many rows behind the first as words are smaller.
    start = [jnp.broadcast_to(memory.lane, word.shape) for word in words]
    found = lax.fori_loop(0, memory.tile.bit_length() - 1, halve, start)
    memory.machine.barrier()
    return [at >> np.int32(memory.lanes.bit_length() - 1) for at in found]
