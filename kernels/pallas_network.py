"""Ranks in a fused kernel, by sorting in registers: one sample in each lane.

A thread has no instructions to sort values with their places, but `min` and `max` sort words. A
word holds the *level* of a perturbed value, which never falls where the value rises, and below it
the coordinate. Another sort, by coordinate, takes the places back to where the values came from.

Words are short of bits. Two different values may share a level: then this tile of samples, which is
rare, is counted exactly. So the ranks are those of `ranking.ranks`, always.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.blocks import split
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


def aid(math: NoiseMath, x: jax.Array, sigma: jax.Array, times: int) -> Aid:
    """Limits [..., 4] of rows x [..., d] and sigma [..., 1 or d]: shift, scale, whether to count.

    The level of y is t = y * scale + shift, bit by bit. Values far below the others, as masks are
    made, would leave those few levels: they are *sunk*, below the lowest level in the order of
    ties. This takes that no noise changes them and that they are equal. Rows of others, rows with
    NaN or infinity, those with no positive sigma and those too far from zero are counted.
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
    settled = equal & on_scale & jnp.all(sigma > 0, -1, keepdims=True)
    counted = jnp.where(settled, np.float32(0), np.float32(1))
    limits = jnp.broadcast_arrays(shift, scale, counted, jnp.zeros_like(counted))
    return Aid((jnp.concatenate(limits, -1),), lambda limits_ref: limits_ref)


def values(sort_key: Callable[[jax.Array], jax.Array]) -> Callable[..., tuple]:
    """(row, ref to t) -> (its sort keys in ascending order; <h_1(z), t>), all [1, lanes]."""

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        keys, product = _in_turn(row, lambda y, _: sort_key(y), tangent_ref)
        return tuple(row.draws.machine.ascending(keys)), product

    return of_row


def ranks(sort_key: Callable[[jax.Array], jax.Array], *, descending: bool) -> Callable[..., tuple]:
    """(row, ref to t) -> (its stable ranks; <h_1(z), t>), all float32 [1, lanes].

    Args:
        sort_key: one of `ranking.SORT_KEYS`.
        descending: whether it puts large values first.
    """

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        bits = max(1, (row.d - 1).bit_length())
        assert bits <= 6, "a word holds all levels of 64 coordinates"
        below = np.uint32((1 << bits) - 1)  # the bits of the coordinate
        machine = row.draws.machine
        word = functools.partial(level_word, row, bits=bits, descending=descending)
        words, product = _in_turn(row, word, tangent_ref)
        words = [lax.bitcast_convert_type(word, jnp.uint32) for word in machine.ascending(words)]
        in_order = reversed(words) if descending else words
        places = [lax.bitcast_convert_type(word & below, jnp.int32) for word in in_order]
        sorted_ranks = tuple(machine.inverse(places, row.threads))
        in_doubt = _in_doubt(words, below, row)
        found = lax.cond(in_doubt, lambda: _counted(row, sort_key), lambda: sorted_ranks)
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


def _in_doubt(words: Sequence[jax.Array], below: np.uint32, row) -> jax.Array:
    """Whether two neighbours of any sample share a level, or the row is to be counted."""
    apart = (a ^ b for a, b in itertools.pairwise(words))
    nearest = functools.reduce(lax.min, apart, jnp.full((1, row.lanes), _LARGEST))
    doubt = jnp.where(nearest <= below, np.float32(1), row.aid[2, 0])
    return jnp.max(jnp.max(doubt, 0)) > 0


def _in_turn(
    row, word: Callable[[jax.Array, jax.Array], jax.Array], tangent_ref=None
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """(word(y, coordinate), int32, of every coordinate of the row; <h_1(z), t>), all [1, lanes].

    No register can be indexed by a loop counter: the words of a turn queue up behind the others.
    """
    turns, tiles = split(row.num_tiles, max(1, TUNING.kernel_network_turn // row.tile))

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


def _counted(row, sort_key: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, ...]:
    """The ranks by comparing all pairs: each key leaves its queue, and enters again at the end."""

    def turn(_, queues):
        (key, *keys), ranks = queues
        rank = sum((other < key).astype(jnp.float32) for other in keys)
        # One less, so that it comes before equal keys of later coordinates.
        return (*keys, key - np.int32(1)), (*ranks[1:], jnp.broadcast_to(rank, key.shape))

    keys, _ = _in_turn(row, lambda y, _: sort_key(y))
    start = keys, (jnp.zeros((1, row.lanes), jnp.float32),) * row.d
    return lax.fori_loop(0, row.d, turn, start)[1]
