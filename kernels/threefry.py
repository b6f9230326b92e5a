"""Threefry-2x32: the bits behind `jax.random`, as plain functions of (key, counter).

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". JAX's own lowering rolls the
rounds into a loop, which costs three times as much on a CPU; here they are unrolled, in plain
`jnp`, so that the same lines run under XLA and inside every kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.held import held
from perturbk.kernels.machine import PLAIN, Machine

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry2x32(
    k0: jax.Array, k1: jax.Array, x0: jax.Array, x1: jax.Array, machine: Machine = PLAIN
) -> tuple[jax.Array, jax.Array]:
    """Encrypts the counter words (x0, x1) under the key words (k0, k1), 20 rounds.

    All four are uint32 and broadcast against each other; returns two uint32 words of that shape.
    """
    return keyed_rounds(k0, k1, x0 + k0, x1 + k1, machine)


def keyed_rounds(
    k0: jax.Array, k1: jax.Array, x0: jax.Array, x1: jax.Array, machine: Machine = PLAIN
) -> tuple[jax.Array, jax.Array]:
    """The rounds of `threefry2x32`, on counter words to which the key words are already added."""
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    for i in range(5):
        for j, r in enumerate(_ROTATIONS[i % 2]):
            x0 = x0 + x1
            x1 = machine.rotates[(4 * i + j) % len(machine.rotates)](x1, r) ^ x0
        x0 = x0 + schedule[(i + 1) % 3]
        x1 = x1 + (schedule[(i + 2) % 3] + np.uint32(i + 1))
    return x0, x1


def element_bits(
    k0: jax.Array, k1: jax.Array, element: jax.Array, machine: Machine = PLAIN
) -> jax.Array:
    """The 32 bits that `jax.random.bits(key, shape)` gives at row-major index `element`.

    Holds for `jax_threefry_partitionable=True` and fewer than 2**32 elements in the array.
    """
    a, b = threefry2x32(k0, k1, jnp.zeros_like(element), element, machine)
    return a ^ b


def leaf_keys(key_data: jax.Array, num_samples: int, leaf: int) -> jax.Array:
    """Key words of every sample of one leaf: uint32 [2, num_samples].

    Equal to `split(split(key, num_samples)[s], num_leaves)[leaf]` for each sample s: what a
    partitionable split gives does not depend on how many keys are asked for.
    """

    def words(key_data: jax.Array) -> jax.Array:
        sample = lax.iota(jnp.uint32, num_samples)
        zero = jnp.zeros_like(sample)
        s0, s1 = threefry2x32(key_data[0], key_data[1], zero, sample)
        return jnp.stack(threefry2x32(s0, s1, zero, jnp.full_like(sample, np.uint32(leaf))))

    # Else XLA would derive the keys again for every element: minutes to compile.
    return held(words, key_data, variates=2)


@dataclasses.dataclass(frozen=True)
class Cells:
    """How a stream counts its encryptions along a row, for kernels that count by themselves.

    A cell is what one encryption gives: the coordinates from a multiple of `together` on. The
    first counter word is 0, the second that of the cell.

    Attributes:
        together: coordinates of a cell.
        stride: counter of a cell less that of the one before.
        words: the stream's counter of a coordinate -> (that of its cell, what else `bits` needs).
        bits: (both encrypted words, *what else) -> random bits of each coordinate of the cell.
    """

    together: int
    stride: int
    words: Callable[..., tuple[jax.Array, ...]]
    bits: Callable[..., tuple[jax.Array, ...]]
