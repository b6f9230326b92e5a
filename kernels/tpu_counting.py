"""Ranks on a TPU by counting: every pair of coordinates compared once.

No pair of coordinates shares a vector, so nothing moves between lanes: coordinates i < j of 1024
samples are compared by one instruction, and which of them comes first in a tie is known.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.tpu_cut import VECTOR

_BLOCK = 8  # coordinates compared with as many others in one turn: their keys stay in registers


def height(d: int) -> int:
    """Coordinates with the padding that `rank` needs."""
    return d if d <= _BLOCK else -(-d // _BLOCK) * _BLOCK


def rank(keys_ref, ranks_ref, count: int) -> None:
    """Stable ascending ranks of the first keys along axis 0: rank_j = #{i : i before j}.

    Each pair i < j is compared once: if i comes first, which it does in a tie, j gains a rank,
    and otherwise i does. i starts with as many as there are j.

    Args:
        keys_ref: int32 [count or more, sublanes, lanes].
        ranks_ref: float32 [count or more, sublanes, lanes], written.
        count: a `height`.
    """
    size = min(count, _BLOCK)
    blocks = count // size

    def compare(keys_i, keys_j, ranks_i, ranks_j, *, same: bool):
        for i in range(size):
            for j in range(i + 1 if same else 0, size):
                first = (keys_i[i] <= keys_j[j]).astype(jnp.float32)
                ranks_j[j] = ranks_j[j] + first
                ranks_i[i] = ranks_i[i] - first

    def load(ref, block) -> list[jax.Array]:
        return [ref[block * np.int32(size) + np.int32(i)] for i in range(size)]

    def store(block, ranks: list[jax.Array]) -> None:
        for i, r in enumerate(ranks):
            ranks_ref[block * np.int32(size) + np.int32(i)] = r

    def within(block, carry):
        keys = load(keys_ref, block)
        behind = (np.int32(count - 1) - block * np.int32(size)).astype(jnp.float32)
        ranks = [jnp.broadcast_to(behind - np.float32(i), VECTOR) for i in range(size)]
        compare(keys, keys, ranks, ranks, same=True)
        store(block, ranks)
        return carry

    def between(_, pair):
        i, j = pair
        ranks_i, ranks_j = load(ranks_ref, i), load(ranks_ref, j)
        compare(load(keys_ref, i), load(keys_ref, j), ranks_i, ranks_j, same=False)
        store(i, ranks_i)
        store(j, ranks_j)
        end = j == np.int32(blocks - 1)
        return jnp.where(end, i + 1, i), jnp.where(end, i + 2, j + 1)

    lax.fori_loop(np.int32(0), np.int32(blocks), within, 0)
    pairs = np.int32(blocks * (blocks - 1) // 2)
    lax.fori_loop(np.int32(0), pairs, between, (np.int32(0), np.int32(1)))
