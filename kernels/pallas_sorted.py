"""Ranks, or values in order, in a fused kernel, by sorting tiles.

Many threads hold a row, and memory its sorted words. For ranks, words hold levels and coordinates,
as in `pallas_network`, and the place of each is stored at its coordinate. Where two of a row share
a level, their keys decide, which are found in memory by their coordinates.

Where three share one or many pairs do, and in rows so long that some always would, whole keys are
sorted. Each key of the row then looks up, by bisection, how many are smaller. Where no two are
equal these are the ranks. Where some are, the keys of a second round are these numbers with the
coordinates below them, of which no two are equal.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels import bitonic
from perturbk.kernels.pallas_network import level_word
from perturbk.kernels.tuning import TUNING

_LARGEST = np.int32(0x7FFFFFFF)

SortKey = Callable[[jax.Array], jax.Array]


def values(sort_key: SortKey) -> Callable[..., tuple]:
    """(row, ref to t) -> (its sort keys in order, [tile, lanes]; <h_1(z), t> [1, lanes])."""

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array], jax.Array]:
        (y, at), product = row.whole(tangent_ref)
        memory = _Memory(row)
        memory.sort_to_places(_to_the_end(row, sort_key(y), at))
        return (memory.in_turn(),), product

    return of_row


def ranks(sort_key: SortKey, *, descending: bool) -> Callable[..., tuple]:
    """(row, ref to t) -> (its stable ranks, int32 [tile, lanes]; <h_1(z), t> [1, lanes]).

    Args:
        sort_key: one of `ranking.SORT_KEYS`.
        descending: whether it puts large values first.
    """

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array], jax.Array]:
        (y, at), product = row.whole(tangent_ref)
        if row.aid is not None:
            return (_rank_by_levels(row, y, at, sort_key, descending),), product
        key, memory = sort_key(y), _Memory(row)
        if row.fours:  # to put them in order
            memory.store(at, key)
            key = memory.in_turn()
        return (_rank_by_keys(row, key, _Memory.sort_to_places),), product

    return of_row


def _to_the_end(row, key: jax.Array, at: jax.Array) -> jax.Array:
    """Keys, of which those behind the end of the row are the last of their equals."""
    return jnp.where(at < row.d, key, _LARGEST)


class _Memory:
    """A part of a program's memory: a word for every place of each lane's row.

    Where a row's words are stored along `slots`, those that many threads store at a time are
    neighbours.
    """

    def __init__(self, row, part: int = 0):
        self.ref, self.machine = row.scratch_ref, row.draws.machine
        self.tile, self.lanes = row.tile, row.lanes
        # If Triton knew of neighbours in memory, one thread would hold several. If addresses were
        # the same for all samples, those of a thread's words would stay in its registers, for 5%
        # fewer instructions in sorts of 128, and 600 bytes that spill in those of 1024 (sm_90).
        lane = lax.broadcasted_iota(jnp.uint32, (1, self.lanes), 1)
        lane = self.machine.opaque(lane, *row.draws.words)
        self.lane = lane.astype(jnp.int32) + np.int32(part * self.tile * self.lanes)
        self.across = min(self.tile, row.threads // self.lanes)
        self.places = bitonic.places(self.tile, self.across)
        self.slots = lax.broadcasted_iota(jnp.int32, (self.tile, 1), 0)

    def at(self, place: jax.Array) -> jax.Array:
        return place * np.int32(self.lanes) + self.lane

    def __getitem__(self, place: jax.Array) -> jax.Array:
        return self.ref[self.at(place)]

    def __setitem__(self, place: jax.Array, word: jax.Array) -> None:
        self.ref[self.at(place)] = word

    def store(self, place: jax.Array, words: jax.Array) -> None:
        """For all threads to see."""
        self[place] = words
        self.machine.barrier()

    def in_turn(self) -> jax.Array:
        """All words, after which others may take their place."""
        found = self[self.slots]
        self.machine.barrier()
        return found

    def sort_to_slots(self, words: jax.Array) -> jax.Array:
        """Each lane's by itself, along `places`."""
        words = self.machine.ascending_rows(words, self.across)
        self.store(self.slots, words)
        return words

    def sort_to_places(self, words: jax.Array) -> None:
        self.store(self.places, self.machine.ascending_rows(words, self.across))

    def sort_in_turns(self, words: jax.Array) -> None:
        """The same, slowly, and in little machine code: Batcher's, from step to step in memory."""
        place = self.slots

        def block(k, words):
            def exchange(i, words):
                step = np.int32(1) << (k - i)
                other = self[place ^ step]
                keeps_low = (place & step == 0) == (place & (np.int32(2) << k) == 0)
                words = jnp.where(keeps_low, lax.min(words, other), lax.max(words, other))
                self.machine.barrier()
                self.store(place, words)
                return words

            return lax.fori_loop(0, k + 1, exchange, words)

        self.store(place, words)
        lax.fori_loop(0, self.tile.bit_length() - 1, block, words)

    def after(self, slot: jax.Array) -> jax.Array:
        """The slot of the next place, or some slot for the last."""
        found = slot + np.int32(self.across)
        return jnp.where(found < self.tile, found, found - np.int32(self.tile - 1))

    def slot(self, place: jax.Array) -> jax.Array:
        """The slot of a place."""
        within = self.tile // self.across
        thread = place >> np.int32(within.bit_length() - 1)
        return (place & np.int32(within - 1)) * np.int32(self.across) + thread


def _rank_by_levels(
    row, y: jax.Array, at: jax.Array, sort_key: SortKey, descending: bool
) -> jax.Array:
    """The ranks from one sort; by keys if three share a level, or many pairs do."""
    bits = (row.tile - 1).bit_length()
    below, end = np.int32((1 << bits) - 1), np.int32(row.d - 1)
    words = jnp.where(
        at < row.d,
        level_word(row, y, at, bits=bits, descending=descending),
        _LARGEST - ((below - at) << np.int32(bits)),  # levels of their own
    )
    # The second part holds the values, which in registers would lie there all the time, then ranks.
    memory, found = _Memory(row), _Memory(row, part=1)
    aside = np.int32(2 * row.tile)  # behind both
    # Not behind the end: what is not used there is not drawn.
    y = jnp.where(at < row.d, y, np.float32(0))
    found[found.slots] = lax.bitcast_convert_type(y, jnp.int32)
    words = memory.sort_to_slots(words)

    def key(slot: jax.Array) -> jax.Array:
        return sort_key(lax.bitcast_convert_type(found[slot], jnp.float32))

    apart = lax.bitcast_convert_type(words ^ memory[memory.after(memory.slots)], jnp.uint32)
    shares = (apart <= below.astype(np.uint32)) & (row.aid[2, 0] == 0)
    shared = jnp.where(shares, memory.places, _LARGEST)  # places, if the next shares the level

    def first_of(shared: jax.Array) -> jax.Array:
        return jnp.min(shared, 0, keepdims=True)

    def settle(carry):
        """Of the first two that share a level, the keys decide."""
        shared, place, turns, _ = carry
        has_two = place < _LARGEST  # in this lane
        here = jnp.where(has_two, place, np.int32(0))
        slots = [memory.slot(here + np.int32(i)) for i in range(2)]
        first, second = (memory[slot] for slot in slots)
        mine, others = (key(row.row_of(word & below)) for word in (first, second))
        change = has_two & ((mine <= others) if descending else (mine > others))
        memory.machine.barrier()
        for slot, word in zip(slots, (second, first), strict=True):
            memory[jnp.where(change, slot, aside)] = word
        shared = jnp.where(shared == place, _LARGEST, shared)
        following = first_of(shared)
        three = has_two & (following == here + 1)
        return shared, following, turns + 1, jnp.max(jnp.max(three.astype(jnp.int32), 0))

    def unsettled(carry) -> jax.Array:
        _, place, turns, three = carry
        more = turns < np.int32(TUNING.kernel_pairs_most)
        return (jnp.min(jnp.min(place, 0)) < _LARGEST) & more & (three == 0)

    start = shared, first_of(shared), np.int32(0), np.int32(0)
    _, place, _, three = lax.while_loop(unsettled, settle, start)
    memory.machine.barrier()

    def by_keys() -> jax.Array:
        return _rank_by_keys(row, key(row.row_of(found.slots)), _Memory.sort_in_turns)

    def by_places() -> jax.Array:
        word = memory[memory.slots]
        rank = jnp.broadcast_to(end - memory.places if descending else memory.places, word.shape)
        if memory.machine.exchanged:
            places = memory.at(word & below), memory.at(memory.slots)
            return memory.machine.exchanged(rank, *places, row.threads)
        found.store(word & below, rank)
        return found.in_turn()

    left = (jnp.min(jnp.min(place, 0)) < _LARGEST) | (three > 0) | (row.aid[2, 0] > 0)
    return lax.cond(left, by_keys, by_places)


def _rank_by_keys(row, keys: jax.Array, sort: Callable[[_Memory, jax.Array], None]) -> jax.Array:
    """The ranks by bisection, of keys in the order of the row. sort: stores words in order."""
    bits, memory = np.int32((row.tile - 1).bit_length()), _Memory(row)
    at = memory.slots

    def turn(carry):
        words, _, number = carry
        sort(memory, words)
        places = _smaller(memory, words)
        again = _some_are_equal(places, at < row.d, row.d) & (number == 1)
        return (places << bits) | at, places, jnp.where(again, np.int32(2), np.int32(0))

    start = _to_the_end(row, keys, at), jnp.zeros_like(keys), np.int32(1)
    _, places, _ = lax.while_loop(lambda carry: carry[2] > 0, turn, start)
    return places


def _some_are_equal(places: jax.Array, real: jax.Array, d: int) -> jax.Array:
    """Whether in any lane places are shared, which makes their sum less than that of all."""
    total = jnp.sum(jnp.where(real, places, np.int32(0)), 0)
    return jnp.min(total) < np.int32(d * (d - 1) // 2)


def _smaller(memory: _Memory, words: jax.Array) -> jax.Array:
    """For each word, how many of its lane's, which lie in order, are smaller."""
    lanes = np.int32(memory.lanes)

    def halve(i, found):
        step = np.int32(memory.tile // 2 * memory.lanes) >> i
        return found + jnp.where(memory.ref[found + (step - lanes)] < words, step, np.int32(0))

    # The places in memory, which are as many rows behind the first as words are smaller.
    start = jnp.broadcast_to(memory.lane, words.shape)
    found = lax.fori_loop(0, memory.tile.bit_length() - 1, halve, start)
    memory.machine.barrier()
    return found >> np.int32(memory.lanes.bit_length() - 1)
