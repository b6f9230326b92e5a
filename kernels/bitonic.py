"""Batcher's bitonic sort (1968) along the first axis of tiles, whose elements many threads hold.

Neighbours change places by reductions over an axis of two, which a compiler turns into exchanges
between threads, or into plain instructions where one thread holds both. The first bits of a place
are compared most often: they should be those that one thread holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class _Bit:
    """A bit of a place: that of the number of a row, or of the number of a tile."""

    value: int
    of_tile: bool = False


def _powers(start: int, end: int) -> list[int]:
    return [1 << i for i in range(start.bit_length() - 1, end.bit_length() - 1)]


def places(count: int, height: int, across: int) -> list[jax.Array]:
    """For each of `count` tiles the places of its rows, int32 [height, 1].

    Powers of two. Of `across` neighbouring rows each is held by another thread; those that one
    thread holds, of all tiles, are neighbours in place.
    """
    row = lax.broadcasted_iota(jnp.int32, (height, 1), 0)
    each = height // across
    thread = row & np.int32(across - 1)
    within = row >> np.int32(across.bit_length() - 1)
    return [thread * np.int32(count * each) + (within + np.int32(i * each)) for i in range(count)]


def ascending(tiles: Sequence[jax.Array], across: int) -> list[jax.Array]:
    """Integers [height, lanes] in ascending order along `places`, each lane by itself."""
    tiles, height = list(tiles), tiles[0].shape[0]
    bits = [_Bit(v) for v in _powers(across, height)]
    bits += [_Bit(v, of_tile=True) for v in _powers(1, len(tiles))]
    bits += [_Bit(v) for v in _powers(1, across)]
    row = lax.broadcasted_iota(jnp.int32, (height, 1), 0)
    for k in range(len(bits)):
        turning = bits[k + 1] if k + 1 < len(bits) else None  # where set, blocks descend
        flips = None
        if turning and not turning.of_tile and turning.value < across:
            # All of a thread's values descend: their complements ascend, as those of the others do.
            flips = jnp.where(row & np.int32(turning.value) == 0, np.int32(0), np.int32(-1))
            tiles, turning = [tile ^ flips for tile in tiles], None
        for bit in reversed(bits[: k + 1]):
            exchange = _between if bit.of_tile else _within
            tiles = exchange(tiles, bit.value, turning)
        if flips is not None:
            tiles = [tile ^ flips for tile in tiles]
    return tiles


def _between(tiles: list[jax.Array], step: int, turning: _Bit | None) -> list[jax.Array]:
    """Compares whole tiles."""
    tiles = list(tiles)
    row = lax.broadcasted_iota(jnp.int32, (tiles[0].shape[0], 1), 0)
    for i in range(len(tiles)):
        if i & step == 0:
            low, high = lax.min(tiles[i], tiles[i + step]), lax.max(tiles[i], tiles[i + step])
            if turning and not turning.of_tile:
                descending = row & np.int32(turning.value) != 0
                low, high = jnp.where(descending, high, low), jnp.where(descending, low, high)
            elif turning and i & turning.value:
                low, high = high, low
            tiles[i], tiles[i + step] = low, high
    return tiles


def _within(tiles: list[jax.Array], distance: int, turning: _Bit | None) -> list[jax.Array]:
    """Compares the rows of each tile."""
    height, lanes = tiles[0].shape
    shape = height // (2 * distance), 2, distance, 1
    block, upper, row = (lax.broadcasted_iota(jnp.int32, shape, i) for i in range(3))
    found = []
    for i, tile in enumerate(tiles):
        keeps_low = upper == 0
        if turning and turning.of_tile:
            keeps_low = upper == np.int32(i & turning.value != 0)
        elif turning and turning.value < distance:
            keeps_low ^= row & np.int32(turning.value) != 0
        elif turning:
            keeps_low ^= block & np.int32(turning.value // (2 * distance)) != 0
        pairs = tile.reshape(*shape[:3], lanes)
        low, high = jnp.min(pairs, 1, keepdims=True), jnp.max(pairs, 1, keepdims=True)
        found.append(jnp.where(keeps_low, low, high).reshape(tile.shape))
    return found
