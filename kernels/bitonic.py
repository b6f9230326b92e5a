"""Batcher's bitonic sort (1968) along the first axis of a tile, whose elements many threads hold.

Neighbours change places by reductions over an axis of two, which a compiler turns into exchanges
between threads, or into plain instructions where one thread holds both. The first bits of a place
are compared most often: they should be those that one thread holds.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def _powers(start: int, end: int) -> list[int]:
    return [1 << i for i in range(start.bit_length() - 1, end.bit_length() - 1)]


def places(height: int, across: int) -> jax.Array:
    """The places of a tile's rows, int32 [height, 1]; both are powers of two.

    Of `across` neighbouring rows each is held by another thread; those that one thread holds are
    neighbours in place.
    """
    row = lax.broadcasted_iota(jnp.int32, (height, 1), 0)
    thread = row & np.int32(across - 1)
    within = row >> np.int32(across.bit_length() - 1)
    return thread * np.int32(height // across) + within


def ascending(tile: jax.Array, across: int) -> jax.Array:
    """Integers [height, lanes] in ascending order along `places`, each lane by itself."""
    height = tile.shape[0]
    bits = _powers(across, height) + _powers(1, across)  # of the number of a row
    row = lax.broadcasted_iota(jnp.int32, (height, 1), 0)
    for k in range(len(bits)):
        turning = bits[k + 1] if k + 1 < len(bits) else None  # where set, blocks descend
        flips = None
        if turning and turning < across:
            # All of a thread's values descend: their complements ascend, as those of the others do.
            flips = jnp.where(row & np.int32(turning) == 0, np.int32(0), np.int32(-1))
            tile, turning = tile ^ flips, None
        for bit in reversed(bits[: k + 1]):
            tile = _exchanged(tile, bit, turning, between=bit < across)
        if flips is not None:
            tile = tile ^ flips
    return tile


def _exchanged(tile: jax.Array, distance: int, turning: int | None, between: bool) -> jax.Array:
    """Compares rows at a distance, which may be between threads."""
    height, lanes = tile.shape
    shape = height // (2 * distance), 2, distance, 1
    block, upper, row = (lax.broadcasted_iota(jnp.int32, shape, i) for i in range(3))
    keeps_low = upper == 0
    if turning and turning < distance:
        keeps_low ^= row & np.int32(turning) != 0
    elif turning:
        keeps_low ^= block & np.int32(turning // (2 * distance)) != 0
    pairs = tile.reshape(*shape[:3], lanes)
    if between:
        # One exchange: the assembler does not always see that two reductions need the same.
        others = jnp.sum(pairs, 1, keepdims=True, dtype=jnp.int32) - pairs
        low, high = lax.min(pairs, others), lax.max(pairs, others)
    else:
        low, high = jnp.min(pairs, 1, keepdims=True), jnp.max(pairs, 1, keepdims=True)
    return jnp.where(keeps_low, low, high).reshape(tile.shape)
