"""Batcher's odd-even mergesort (1968): a fixed list of comparators that sorts any values."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@functools.cache
def comparators(n: int) -> tuple[tuple[int, int], ...]:
    """Pairs of places, first before second, whose values are to be put in order one by one.

    That of the next power of two, without the places behind n: they would hold the largest values,
    which never move.
    """
    pairs = []
    p = 1
    while p < n:
        k = p
        while k:
            for first in range(k % p, n - k, 2 * k):
                for i in range(first, min(first + k, n - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        pairs.append((i, i + k))
            k //= 2
        p *= 2
    return tuple(pairs)


def ascending(values: Sequence[jax.Array]) -> list[jax.Array]:
    """The values in ascending order, elementwise: as many arrays of the same shape."""
    values = list(values)
    for a, b in comparators(len(values)):
        values[a], values[b] = lax.min(values[a], values[b]), lax.max(values[a], values[b])
    return values


def in_turns(values: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """The same by comparing neighbours only, as often as there are values: slow, in little code.

    A second network of 128 values takes a compiler of Triton 15 s.
    """

    def turn(_, values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        values = list(values)
        for first in (0, 1):
            for a in range(first, len(values) - 1, 2):
                pair = values[a], values[a + 1]
                values[a], values[a + 1] = lax.min(*pair), lax.max(*pair)
        return tuple(values)

    return lax.fori_loop(0, (len(values) + 1) // 2, turn, tuple(values))


def inverse(places: Sequence[jax.Array]) -> list[jax.Array]:
    """Of a permutation, elementwise: float32, which hold i where the i-th is the place.

    By another sort, of words that hold the places above and the numbers below.
    """
    bits = max(1, (len(places) - 1).bit_length())
    numbered = [(place << np.int32(bits)) | np.int32(i) for i, place in enumerate(places)]
    below = np.int32((1 << bits) - 1)
    return [(word & below).astype(jnp.float32) for word in ascending(numbered)]
