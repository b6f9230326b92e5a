"""Ranks, or values in order, in a fused kernel, by sorting tiles.

Many threads hold a row, and memory its sorted words. For ranks, each key of the row then looks up,
by bisection, how many are smaller. Where no two are equal these are the ranks. Where some are, the
keys of a second round are these numbers with the coordinates below them, of which no two are equal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels import bitonic
from perturbk.kernels.pallas_rows import summed

_LARGEST = np.int32(0x7FFFFFFF)


def values(sort_key: Callable[[jax.Array], jax.Array]) -> Callable[..., tuple]:
    """(row, ref to t) -> (its sort keys in ascending order; <h_1(z), t> [1, lanes]).

    Of the pieces of a row, row r of piece i holds number r * pieces + i.
    """

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        keys, _, product = _keys(row, sort_key, tangent_ref)
        lane = _sort_into_memory(keys, row)
        count = len(keys)
        first = lax.broadcasted_iota(jnp.int32, keys[0].shape, 0) * np.int32(count)
        found = []
        for i in range(count):
            at = (first + np.int32(i)) * np.int32(row.lanes)
            found.append(row.scratch_ref[at + lane])
        row.draws.machine.barrier()
        return tuple(found), summed(product)

    return of_row


def ranks(sort_key: Callable[[jax.Array], jax.Array]) -> Callable[..., tuple]:
    """(row, ref to t) -> (its stable ranks, piece by piece, int32; <h_1(z), t> [1, lanes]).

    sort_key: one of `ranking.SORT_KEYS`.
    """

    def of_row(row, tangent_ref=None) -> tuple[tuple[jax.Array, ...], jax.Array]:
        keys, coordinates, product = _keys(row, sort_key, tangent_ref)
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
        return tuple(found), summed(product)

    return of_row


def _keys(row, sort_key, tangent_ref) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """(sort keys, coordinates, terms of <h_1(z), t>) of each piece of a row."""
    pieces, product = row.pieces(0, tangent_ref)
    keys = [
        jnp.where(at < row.d, sort_key(y), _LARGEST)  # behind the end, and last of its equals
        for y, at in pieces
    ]
    return keys, [at for _, at in pieces], jnp.broadcast_to(product, keys[0].shape)


def _some_are_equal(places, real, d: int) -> jax.Array:
    """Whether in any lane places are shared, which makes their sum less than that of all."""
    kept = (jnp.where(r, p, np.int32(0)) for r, p in zip(real, places, strict=True))
    return jnp.min(jnp.sum(functools.reduce(jnp.add, kept), 0)) < np.int32(d * (d - 1) // 2)


def _smaller(words: Sequence[jax.Array], row) -> list[jax.Array]:
    """For each word, how many of its lane's are smaller."""
    machine, memory, lanes = row.draws.machine, row.scratch_ref, row.lanes
    lane = _sort_into_memory(words, row)

    def halve(i, found):
        step = np.int32(row.tile // 2 * lanes) >> i
        return [
            at + jnp.where(memory[at + (step - np.int32(lanes))] < word, step, np.int32(0))
            for at, word in zip(found, words, strict=True)
        ]

    # The places in memory, which are as many rows behind the first as words are smaller.
    found = lax.fori_loop(0, row.tile.bit_length() - 1, halve, [lane] * len(words))
    machine.barrier()
    return [at >> np.int32(lanes.bit_length() - 1) for at in found]


def _sort_into_memory(words: Sequence[jax.Array], row) -> jax.Array:
    """Stores the words in order, each lane's by itself; returns the lanes, int32 [height, lanes].

    The word at a place is at place * lanes + lane of the row's memory.
    """
    machine, (height, lanes) = row.draws.machine, words[0].shape
    lane = lax.broadcasted_iota(jnp.int32, (height, lanes), 1)
    across = min(height, row.threads // lanes)
    tiles = machine.ascending_rows(words, across)
    for place, tile in zip(bitonic.places(len(words), height, across), tiles, strict=True):
        row.scratch_ref[place * np.int32(lanes) + lane] = tile
    machine.barrier()
    return lane
