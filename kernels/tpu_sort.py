"""Ranks, or values in order, on a TPU: a bitonic network over coordinates, a vector for each.

Every comparator of the network puts the smaller of two vectors first, so nothing moves between
lanes. A group of coordinates passes through as many levels as it is closed under, in registers: one
load and store for four or five levels.

For ranks the keys are sorted with their coordinates, equal ones put in order (a network is not
stable), and the coordinates are sorted with their places, which are the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.network import comparators
from perturbk.kernels.tpu_cut import VECTOR
from perturbk.kernels.tuning import TUNING

_GROUP = 16
_REGISTERS = 32  # words of a group of entries: half of the registers
_TOGETHER = 2  # groups in one turn: they hide each other's latency
_UNIT = np.float32(TUNING.tpu_ranking_most)  # coordinate * _UNIT + place is exact in float32

Pairs = Sequence[tuple[int, int]]


def height(d: int) -> int:
    """Coordinates with the padding that `rank` needs, and one more."""
    return max(_GROUP, 1 << (d - 1).bit_length()) + 1


def distinct(key: jax.Array, coordinate) -> jax.Array:
    """Sort keys without the long ties: infinities and NaN, of which a row may have many.

    With negative keys one lower, there are 2**22 unused values above each of these, enough to
    count the coordinates.
    """
    sign = key >> np.int32(31)
    key = key + sign
    extreme = (key ^ sign) >= np.int32(0x7F800000)
    return jnp.where(extreme, (key & np.int32(-0x400000)) + coordinate, key)


def rank(keys_ref, places_ref, d: int) -> None:
    """Stable ascending ranks of the first d keys along axis 0.

    Args:
        keys_ref: int32 [height, sublanes, lanes], destroyed.
        places_ref: float32 [height, sublanes, lanes]; holds each coordinate's index, and in the
            end `index * _UNIT + rank`.
    """
    count = keys_ref.shape[0] - 1

    def by_key(a, b):
        first = a[0] <= b[0]
        low = tuple(jnp.where(first, x, y) for x, y in zip(a, b, strict=True))
        return low, tuple(jnp.where(first, y, x) for x, y in zip(a, b, strict=True))

    _sort([keys_ref, places_ref], by_key, count, d)
    _settle_ties(keys_ref, places_ref, d)

    def number(g, carry):
        for p in _strided(g, 1, _GROUP):
            places_ref[p] = places_ref[p] * _UNIT + p.astype(jnp.float32)
        return carry

    lax.fori_loop(np.int32(0), np.int32(count // _GROUP), number, 0)
    _sort([places_ref], _by_word, count, d)


def ascending(keys_ref, d: int) -> None:
    """Puts the keys [height, sublanes, lanes] in order, the first d of which are not the last."""
    _sort([keys_ref], _by_word, keys_ref.shape[0] - 1, d)


def _by_word(a, b):
    return (jnp.minimum(a[0], b[0]),), (jnp.maximum(a[0], b[0]),)


def rank_at(places_ref, j: jax.Array) -> jax.Array:
    """Rank of coordinate j after `rank`, float32."""
    return places_ref[j] - j.astype(jnp.float32) * _UNIT


def _sort(refs: Sequence, exchange: Callable, count: int, d: int) -> None:
    """Sorts the first `count` entries, a power of two, of which those from d on are last already.

    exchange: two entries (a value of each ref) -> (smaller, larger).
    """
    size = min(_REGISTERS // len(refs), count)  # entries in a group

    def over(groups: int, positions: Callable, pairs: Pairs) -> None:
        together = _TOGETHER if groups > 1 and count // size % _TOGETHER == 0 else 1

        def group(g):
            at = positions(g)
            entries = [tuple(ref[p] for ref in refs) for p in at]
            for a, b in pairs:
                entries[a], entries[b] = exchange(entries[a], entries[b])
            return zip(at, entries, strict=True)

        def turn(i, carry):
            # All loads before all stores: the groups do not overlap, which no compiler sees.
            done = [group(i * np.int32(together) + np.int32(u)) for u in range(together)]
            for p, entry in (pair for pairs in done for pair in pairs):
                for ref, value in zip(refs, entry, strict=True):
                    ref[p] = value
            return carry

        lax.fori_loop(np.int32(0), np.int32(-(-groups // together)), turn, 0)

    def strided(step: int, pairs: Pairs) -> None:
        over(-(-d // (size * step)) * step, lambda g: _strided(g, step, size), pairs)

    strided(1, comparators(size))  # the fewest, where all are in registers
    half = size
    while half < count:
        step = half // (size // 2)
        merge = [(t, size - 1 - t) for t in range(size // 2)]  # leaves both halves bitonic
        over(
            -(-d // (2 * half)) * step,
            lambda g, half=half: _mirrored(g, half, size),
            merge + _cleaning_pairs(size // 4, size),
        )
        stride = step // 2
        while stride:
            step = max(stride // (size // 2), 1)
            strided(step, _cleaning_pairs(stride // step, size))
            stride = step // 2
        half *= 2


def _strided(g: jax.Array, step: int, size: int) -> list[jax.Array]:
    """Positions of group g among those of `size` entries that are `step` apart."""
    block, rest = lax.div(g, np.int32(step)), lax.rem(g, np.int32(step))
    return [block * np.int32(size * step) + rest + np.int32(step * t) for t in range(size)]


def _mirrored(g: jax.Array, half: int, size: int) -> list[jax.Array]:
    """Some of the lower half of a block of 2 * half, then their mirror images in the upper one."""
    step = half // (size // 2)
    block, rest = lax.div(g, np.int32(step)), lax.rem(g, np.int32(step))
    first = block * np.int32(2 * half) + rest
    last = block * np.int32(2 * half) + np.int32(2 * half - 1) - rest
    lower = [first + np.int32(step * t) for t in range(size // 2)]
    return lower + [last - np.int32(step * t) for t in reversed(range(size // 2))]


def _cleaning_pairs(stride: int, size: int) -> list[tuple[int, int]]:
    """The levels of a bitonic merge from `stride` down to 1, in a group."""
    pairs = []
    while stride:
        pairs += [(i, i + stride) for i in range(size) if not i // stride % 2]
        stride //= 2
    return pairs


def _settle_ties(keys_ref, places_ref, d: int) -> None:
    """Puts equal neighbours in the order of their coordinates, until there is nothing to do.

    Finite values are seldom equal, and seldom more than two at a time: mostly one pass, which
    finds nothing out of order or sees to a pair or two, and then another.
    """

    def phase(parity: int, swapped: jax.Array) -> jax.Array:
        def turn(g, swapped):
            at = [p + np.int32(parity) for p in _strided(g, 1, _GROUP)]
            for p, q in zip(at[::2], at[1::2], strict=True):
                a, b = places_ref[p], places_ref[q]
                wrong = (keys_ref[p] == keys_ref[q]) & (a > b)
                places_ref[p], places_ref[q] = jnp.where(wrong, b, a), jnp.where(wrong, a, b)
                swapped = jnp.where(wrong, np.float32(1), swapped)
            return swapped

        return lax.fori_loop(np.int32(0), np.int32(-(-d // _GROUP)), turn, swapped)

    def one_pass(_):
        return jnp.max(phase(1, phase(0, jnp.zeros(VECTOR, jnp.float32))))

    lax.while_loop(lambda swapped: swapped > 0, one_pass, np.float32(1))
