"""Batcher's bitonic sort (1968) along the first axis of tiles, whose elements many threads hold.

Neighbours change places by reductions over an axis of two, which a compiler turns into exchanges
between threads, or into plain instructions where one thread holds both.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def ascending(tiles: Sequence[jax.Array]) -> list[jax.Array]:
    """Integers [height, lanes] in ascending order along (tile, row), each lane by itself.

    The number of tiles and their height are powers of two.
    """
    tiles = list(tiles)
    height, block = tiles[0].shape[0], 2
    while block <= len(tiles) * height:
        distance = block // 2
        while distance:
            if distance < height:
                tiles = [_within(a, i * height, distance, block) for i, a in enumerate(tiles)]
            else:
                tiles = _between(tiles, height, distance, block)
            distance //= 2
        block *= 2
    return tiles


def _between(tiles: list[jax.Array], height: int, distance: int, block: int) -> list[jax.Array]:
    """Compares whole tiles; blocks descend and ascend by turns."""
    tiles, step = list(tiles), distance // height
    for i in range(len(tiles)):
        if i & step == 0:
            a, b = tiles[i], tiles[i + step]
            low, high = lax.min(a, b), lax.max(a, b)
            tiles[i], tiles[i + step] = (high, low) if i * height & block else (low, high)
    return tiles


def _within(a: jax.Array, first: int, distance: int, block: int) -> jax.Array:
    """Compares the rows of one tile, whose first is at place `first`."""
    height, lanes = a.shape
    shape = height // (2 * distance), 2, distance, lanes
    pairs = a.reshape(shape)
    low, high = jnp.min(pairs, 1, keepdims=True), jnp.max(pairs, 1, keepdims=True)
    upper = lax.broadcasted_iota(jnp.int32, (*shape[:3], 1), 1)
    if block < height:
        pair = lax.broadcasted_iota(jnp.int32, (*shape[:3], 1), 0)
        descending = pair & np.int32(block // (2 * distance)) != 0
    else:
        descending = first & block != 0
    return jnp.where((upper == 0) ^ descending, low, high).reshape(a.shape)
