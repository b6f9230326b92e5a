"""Ranks in a fused kernel, by sorting in registers: one sample in each lane.

A thread has no instructions to sort values with their places, but `min` and `max` sort words. A
word holds the *level* of a perturbed value, which never falls where the value rises, and below it
the coordinate. The coordinates in that order are a permutation, and the ranks its inverse.

Words are short of bits. Two values may share a level, which is rare: then both are drawn again, and
their keys decide. Where that is not enough, whole keys are sorted. So the ranks are those of
`ranking.ranks`, always.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels import network
from perturbk.kernels.blocks import even_blocks, split
from perturbk.kernels.noise import Z_LEAST, Z_MOST, NoiseMath
from perturbk.kernels.pallas_rows import Aid
from perturbk.kernels.streams import word_like
from perturbk.kernels.tuning import TUNING

# Values that vary as far as the noise lets them have t from 1 to 32, sunk ones the levels from 1/2.
# Six times 2^23 levels leave a word six bits for the coordinate.
_T_MOST = np.float32(32)
_SUNK, _MIDDLE = (np.float32(t).view(np.int32) for t in (1 / 2, 4))
# Of t = y * scale + shift, whose rounding must leave t within a quarter.
_SHIFT_MOST = np.float32(2.0**20)
_LARGEST = np.uint32(0xFFFFFFFF)

SortKey = Callable[[jax.Array], jax.Array]


def aid(math: NoiseMath, x: jax.Array, sigma: jax.Array, times: int) -> Aid:
    """Limits [..., 4] of rows x [..., d] and sigma [..., 1 or d]: shift, scale, 1 for no levels.

    The level of y is t = y * scale + shift, bit by bit. Values far below the others, as masks are
    made, would leave those few levels: they are *sunk*, below the lowest level in the order of
    ties. This takes that no noise changes them and that they are equal. Rows of others, rows with
    NaN or infinity, those with no positive sigma and those too far from zero have no levels.
    """
    del math, times
    low, high = x + sigma * np.float32(Z_LEAST), x + sigma * np.float32(Z_MOST)
    sunk = (low == x) & (high == x)
    least = jnp.min(jnp.where(sunk, np.inf, low), -1, keepdims=True)
    most = jnp.max(high, -1, keepdims=True)
    zero = least - (most - least) / (_T_MOST - 1)
    scale = _T_MOST / (most - zero)
    shift = -zero * scale
    deepest = jnp.min(jnp.where(sunk, x, np.inf), -1, keepdims=True)
    highest = jnp.max(jnp.where(sunk, x, -np.inf), -1, keepdims=True)
    equal = (highest < deepest) | ((highest == deepest) & (highest < least))  # or there are none
    on_scale = (jnp.abs(shift) < _SHIFT_MOST) & (scale > 0) & jnp.isfinite(scale)
    leveled = equal & on_scale & jnp.all(sigma > 0, -1, keepdims=True)
    without = jnp.where(leveled, np.float32(0), np.float32(1))
    limits = jnp.broadcast_arrays(shift, scale, without, jnp.zeros_like(without))
    return Aid((jnp.concatenate(limits, -1),), lambda limits_ref: limits_ref)


def values(sort_key: SortKey) -> Callable[..., tuple]:
    """(row, ref to t) -> (its sort keys in ascending order; <h_1(z), t>), all [1, lanes]."""

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        keys, product = _in_turn(row, lambda y, _: sort_key(y), tangent_ref)
        return tuple(row.draws.machine.ascending(keys)), product

    return of_row


def places(sort_key: SortKey, *, descending: bool) -> Callable[..., tuple]:
    """(row, ref to t) -> (coordinates by stable rank, each int32; <h_1(z), t>, float32).

    All of them are [1, lanes].

    Args:
        sort_key: one of `ranking.SORT_KEYS`.
        descending: whether it puts large values first.
    """

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        bits = max(1, (row.d - 1).bit_length())
        below = np.int32((1 << bits) - 1)  # the bits of the coordinate

        def in_turn(words) -> tuple[jax.Array, ...]:
            found = tuple(word & below for word in words)
            return found[::-1] if descending else found

        def of_doubt() -> tuple[jax.Array, ...]:
            settled, in_order = _settled(row, words, below, sort_key, descending)
            return lax.cond(
                settled, lambda: in_turn(in_order), lambda: _by_keys(row, sort_key, bits)
            )

        word = functools.partial(level_word, row, bits=bits, descending=descending)
        words, product = _in_turn(row, word, tangent_ref)
        words = tuple(row.draws.machine.ascending(words))
        found = lax.cond(_in_doubt(words, below, row), of_doubt, lambda: in_turn(words))
        return found, product

    return of_row


def level_word(
    row, y: jax.Array, coordinate: jax.Array, *, bits: int, descending: bool
) -> jax.Array:
    """The level of y, and below it the coordinate, which has so many bits: int32.

    Of more than six bits each halves the number of levels.
    """
    halvings = max(0, bits - 6)
    shift, scale = row.aid[0, 0], row.aid[1, 0]
    level = lax.bitcast_convert_type(row.draws.machine.fma(y, scale, shift), jnp.int32)
    order = np.int32(row.d - 1) - coordinate if descending else coordinate
    level = jnp.maximum(level, _SUNK + (order << np.int32(halvings))) >> np.int32(halvings)
    # Levels are counted from the middle, lest the largest be negative.
    middle = word_like(int(_MIDDLE) >> halvings << bits, coordinate)
    return (level << np.int32(bits)) + (coordinate - middle)


def _apart(a: jax.Array, b: jax.Array) -> jax.Array:
    """Words of one level differ in less than a coordinate."""
    return lax.bitcast_convert_type(a ^ b, jnp.uint32)


def _in_doubt(words: Sequence[jax.Array], below: np.int32, row) -> jax.Array:
    """Whether two neighbours of any sample share a level, or the row has no levels."""
    apart = itertools.starmap(_apart, itertools.pairwise(words))
    nearest = functools.reduce(lax.min, apart, jnp.full((1, row.lanes), _LARGEST))
    doubt = jnp.where(nearest <= below.astype(np.uint32), np.float32(1), row.aid[2, 0])
    return jnp.max(jnp.max(doubt, 0)) > 0


def _settled(
    row, words: Sequence[jax.Array], below: np.int32, sort_key: SortKey, descending: bool
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """(Whether they are, words in the order of their keys where two share a level).

    They are not where three do, or many pairs, or the row has no levels.
    """
    none = np.int32(row.d)

    def key_of(_, carry):
        """One after the other, in the same code: a search in memory takes Triton a second."""
        (word, other), (_, key) = carry
        return (other, word), (key, sort_key(row.value_at(word & below)))

    def settle(carry):
        """The next two of each lane, if there are any."""
        words, start, turns, _, _ = carry
        place, first, second = jnp.full((1, row.lanes), none), words[0], words[0]
        for i, (here, following) in reversed(list(enumerate(itertools.pairwise(words)))):
            shares = (_apart(here, following) <= below.astype(np.uint32)) & (start <= i)
            place = jnp.where(shares, np.int32(i), place)
            first, second = jnp.where(shares, here, first), jnp.where(shares, following, second)
        keys = (first, second), (jnp.zeros_like(first),) * 2
        _, (mine, others) = lax.fori_loop(0, 2, key_of, keys)
        change = (mine <= others) if descending else (mine > others)
        change = jnp.where(change, place, none)
        changed = []
        for i, word in enumerate(words):
            word = jnp.where(change == i, second, word)
            changed.append(jnp.where(change == i - 1, first, word))
        found, three = place < none, (place == start) & (start > 0)
        return tuple(changed), place + 1, turns + 1, _any(found), _any(found & three)

    def unsettled(carry) -> jax.Array:
        _, _, turns, found, three = carry
        return (found > 0) & (turns <= TUNING.kernel_pairs_most) & (three == 0)

    leveled = jnp.where(row.aid[2, 0] > 0, np.int32(0), np.int32(1))
    start = jnp.zeros((1, row.lanes), jnp.int32), np.int32(0), leveled, np.int32(0)
    words, _, _, found, three = lax.while_loop(unsettled, settle, (tuple(words), *start))
    return (found == 0) & (three == 0) & (leveled > 0), words


def _any(where: jax.Array) -> jax.Array:
    """1 or 0."""
    return jnp.max(jnp.max(where.astype(jnp.int32), 0))


def _in_turn(
    row,
    word: Callable[[jax.Array, jax.Array], jax.Array],
    tangent_ref=None,
    most: int | None = None,
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """(word(y, coordinate), int32, of every coordinate of the row; <h_1(z), t>), all [1, lanes].

    No register can be indexed by a loop counter: the words of a turn queue up behind the others.

    Args:
        most: tiles of a turn, if not those that take the fewest instructions.
    """
    if most is None:
        most = TUNING.kernel_network_fours if row.fours else TUNING.kernel_network_ones
    turns, tiles = even_blocks(row.num_tiles, most)
    if turns * tiles < row.num_tiles:
        turns, tiles = split(row.num_tiles, most)

    def turn(t, carry):
        *queue, product = carry
        for u in range(tiles):
            tile, real = t * tiles + u, True
            if turns * tiles > row.num_tiles:  # behind the end of the row, the last once more
                real = tile < row.num_tiles
                tile = jnp.minimum(tile, row.num_tiles - 1)
            pieces, more = row.pieces(tile, tangent_ref)
            queue = queue[len(pieces) :] + [word(y, coordinate) for y, coordinate in pieces]
            product += jnp.where(real, more, np.float32(0))
        return *queue, product

    queue = (jnp.zeros((1, row.lanes), jnp.int32),) * (turns * tiles * row.tile)
    start = *queue, jnp.zeros((1, row.lanes), jnp.float32)
    *words, product = lax.fori_loop(0, turns, turn, start)
    return tuple(words[: row.d]), product


def _by_keys(row, sort_key: SortKey, bits: int) -> tuple[jax.Array, ...]:
    """The places by two sorts, of the lower and then the upper halves of the keys.

    Words of the second hold the places from the first: equal halves keep their order.
    """
    below, half = np.int32((1 << bits) - 1), np.int32(16)

    def lower(y: jax.Array, coordinate: jax.Array) -> jax.Array:
        return ((sort_key(y) & np.int32(0xFFFF)) << np.int32(bits)) | coordinate

    def upper(place, queue):
        """Of the words in turn; each leaves the queue, and enters again at the end."""
        first, *others = queue
        coordinate = first & below
        key = sort_key(row.value_at(coordinate)) >> half  # from -2^15 on
        word = (key << np.int32(2 * bits)) + (place << np.int32(bits)) + coordinate
        return *others, word

    words, _ = _in_turn(row, lower, most=1)  # in little code
    words = lax.fori_loop(0, row.d, upper, network.in_turns(words))
    return tuple(word & below for word in network.in_turns(words))
