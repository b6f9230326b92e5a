"""A TPU's own random number generator, seeded so often that its numbers have a place.

The generator is a state: what it gives follows from the last seed and from how often it was asked
since. It is therefore seeded anew for each *cell*, the neighbours of one row in 1024 samples, and
asked for all of a cell at once: then a variate depends on nothing but the key and its place, and
every kernel can draw it again (so does `jax.experimental.pallas.tpu.sample_block`). The seeds are
computed beforehand: eight bytes for a cell, of up to 32768 variates.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.threefry import threefry2x32

# Seeding takes as many cycles as the noise of some ten neighbours (v5e, static).
_SEEDING = 10
_LENGTHS = (32, 16, 8, 4, 2, 1)


@dataclasses.dataclass(frozen=True)
class Seeded:
    """How a stream cuts rows into cells.

    Attributes:
        together: neighbours in a row that a cell holds, a power of two; the last of a row may hold
            less.
    """

    together: int


def cells_of(last: int) -> Seeded:
    """Those of rows of this length, by the cost of drawing them."""
    return Seeded(min(_LENGTHS, key=lambda n: -(-last // n) * (n + _SEEDING)))


def seeds(k0: jax.Array, k1: jax.Array, samples: jax.Array, cell: jax.Array) -> jax.Array:
    """Both seeds of cells: int32 [2, ...], of all operands' common shape.

    By Threefry, so that no two of them are alike, however the generator mixes what it is given.

    Args:
        k0, k1: words of the key.
        samples: number of the 1024 samples, from 0 on.
        cell: number of the cell in the leaf, its rows one after the other.
    """
    return jnp.stack(threefry2x32(k0, k1, samples, cell)).astype(jnp.int32)


def generate(s0: jax.Array, s1: jax.Array, count: int, shape: tuple[int, int], platform: str):
    """The random bits of one cell in a TPU's kernel: `count` arrays, uint32 of a vector's shape.

    On a CPU, where kernels are interpreted for tests, Threefry stands in.
    """
    if platform == "tpu":
        from jax.experimental.pallas import tpu as pltpu

        pltpu.prng_seed(s0, s1)
        return [pltpu.prng_random_bits(shape).astype(jnp.uint32) for _ in range(count)]
    k0, k1 = s0.astype(jnp.uint32), s1.astype(jnp.uint32)
    place = lax.broadcasted_iota(jnp.uint32, shape, 0) * np.uint32(shape[1])
    place = place + lax.broadcasted_iota(jnp.uint32, shape, 1)
    number = (jnp.full(shape, np.uint32(i)) for i in range(count))
    return [threefry2x32(k0, k1, i, place)[0] for i in number]
