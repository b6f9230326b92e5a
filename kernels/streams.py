"""Streams of noise: how a variate follows from the key, the sample and the element.

A stream never depends on the block, the grid or the batch in which a variate is drawn. What all
samples of a leaf need from the key is in their *words*, uint32 [words_per_sample, N]; coordinate
j of row r is found by a *counter*. What is *drawn* there, bits or a raw variate, becomes noise and
its score moments by the stream's `NoiseMath`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels import philox
from perturbk.kernels.hardware import Seeded, cells_of
from perturbk.kernels.machine import PLAIN, Machine
from perturbk.kernels.noise import NOISES, NoiseMath
from perturbk.kernels.threefry import Cells, element_bits, leaf_keys, threefry2x32

Counter = tuple[jax.Array, ...]
Drawn = tuple[jax.Array, ...]


def word_like(n: int, a: jax.Array) -> np.integer:
    """n modulo 2^32, in a's dtype, an integer of 32 bits."""
    return np.uint32(n & 0xFFFFFFFF).astype(a.dtype)


class Stream:
    """A stream for one leaf; equal streams compile to one program.

    Attributes:
        words_per_sample: see the module.
        steps: what each word grows by from one sample to the next; None if they are not so made.
        anywhere: whether plain XLA can draw it, on every platform, for any `fun`.
        fused: whether x + sigma z may be rounded once; optax rounds twice.
    """

    words_per_sample: int
    steps: tuple[int, ...] | None = None
    anywhere = True
    fused = True

    def words(self, key: jax.Array, num_samples: int, leaf: int) -> jax.Array:
        """Words of every sample of leaf number `leaf`: uint32 [words_per_sample, N]."""
        raise NotImplementedError

    def rows(self, size: int) -> tuple[int, int]:
        """(number, length) of the rows by which `size` elements of a leaf are counted."""
        raise NotImplementedError

    def counters(self, row: jax.Array, d: int, inner: int) -> Callable[[jax.Array], Counter]:
        """coordinate -> counter in a row of an op (32-bit integers; `inner` as in `xla.py`)."""
        raise NotImplementedError

    def math(self, noise: str, machine: Machine = PLAIN) -> NoiseMath:
        """What to do with what is drawn; by default, with bits."""
        return NOISES[noise](machine)

    def draw(self, noise: str, words: Counter, counter: Counter, machine: Machine) -> jax.Array:
        """What is drawn at a counter; words and counter broadcast against each other."""
        del noise  # made of the same bits, whichever it is
        return self.bits(words, counter, machine)

    def bits(self, words: Counter, counter: Counter, machine: Machine) -> jax.Array:
        """The 32 bits at a counter of which a Gumbel variate is made."""
        raise NotImplementedError

    def in_fours(self, inner: int) -> bool:
        """Whether four neighbours in a row, from a multiple of four on, cost less than four."""
        del inner
        return False

    def draw_four(self, noise: str, words: Counter, counter: Counter, machine: Machine) -> Drawn:
        """What is drawn at four neighbours from a counter on; only if `in_fours`."""
        del noise
        return self.bits_four(words, counter, machine)

    def bits_four(self, words: Counter, counter: Counter, machine: Machine) -> Drawn:
        """The same of `bits`."""
        raise NotImplementedError

    def cells(self, inner: int) -> Cells | Seeded | None:
        """How the kernels of a TPU draw it, if they can."""
        del inner
        return None


@dataclasses.dataclass(frozen=True)
class Threefry(Stream):
    """The bits of `jax.random`, and so of optax, for keys of JAX's default kind."""

    words_per_sample = 2
    fused = False

    def words(self, key, num_samples, leaf):
        return leaf_keys(jax.random.key_data(key), num_samples, leaf)

    def rows(self, size):
        return 1, size

    def counters(self, row, d, inner):
        n = word_like(inner, row)
        base = lax.div(row, n) * word_like(d * inner, row) + lax.rem(row, n)
        return lambda coordinate: ((base + coordinate * n).astype(jnp.uint32),)

    def bits(self, words, counter, machine):
        (element,) = counter
        element = jnp.broadcast_to(
            element, jnp.broadcast_shapes(*map(jnp.shape, (element, *words)))
        )
        return element_bits(*words, machine.opaque(element), machine)

    def cells(self, inner):
        return Cells(1, inner, lambda element: (element,), lambda a, b: (a ^ b,))


@dataclasses.dataclass(frozen=True)
class _ByRow(Stream):
    """Streams that count (row, column) of a leaf, for keys of any kind.

    Attributes:
        last: length of the leaf's last axis, the rows; neighbours in a row are drawn together.
    """

    last: int

    def rows(self, size):
        return size // self.last, self.last

    def counters(self, row, d, inner):
        if self.in_fours(inner):
            return lambda coordinate: (row.astype(jnp.uint32), coordinate.astype(jnp.uint32))
        step = word_like(inner // self.last, row)  # rows of the leaf between neighbours
        rest = lax.rem(row, word_like(inner, row))
        first = lax.div(row, word_like(inner, row)) * word_like(d, row) * step
        first = first + lax.div(rest, word_like(self.last, row))
        column = lax.rem(rest, word_like(self.last, row)).astype(jnp.uint32)
        return lambda coordinate: ((first + coordinate * step).astype(jnp.uint32), column)

    def in_fours(self, inner):
        return inner == 1 and self.last > 1  # of (n, 1), the n neighbours are rows of one element


@dataclasses.dataclass(frozen=True)
class ThreefryPair(_ByRow):
    """Both words of each encryption by Threefry, for two neighbours in a row: a cell.

    The words of a sample are those of optax under a key made of two words of the caller's. A row
    of odd length ends with half a cell.
    """

    words_per_sample = 2

    def words(self, key, num_samples, leaf):
        return leaf_keys(jax.random.bits(key, (2,), jnp.uint32), num_samples, leaf)

    def bits(self, words, counter, machine):
        row, column = counter
        a, b = self._encrypted(words, self._cell(row, column), machine)
        return jnp.where(column & np.uint32(1) == 0, a, b)

    def bits_four(self, words, counter, machine):
        cell = self._cell(*counter)
        cells = (self._encrypted(words, cell + np.uint32(i), machine) for i in range(2))
        return tuple(word for cell in cells for word in cell)

    def cells(self, inner):
        if self.in_fours(inner):
            return Cells(2, 1, lambda *counter: (self._cell(*counter),), lambda a, b: (a, b))
        return Cells(
            1,
            inner // self.last * self._per_row,
            lambda row, column: (self._cell(row, column), column & np.uint32(1)),
            lambda a, b, second: (jnp.where(second == 0, a, b),),
        )

    @property
    def _per_row(self) -> int:
        return -(-self.last // 2)

    def _cell(self, row: jax.Array, column: jax.Array) -> jax.Array:
        return row * np.uint32(self._per_row) + (column >> np.uint32(1))

    def _encrypted(self, words: Counter, cell: jax.Array, machine: Machine) -> Counter:
        cell = jnp.broadcast_to(cell, jnp.broadcast_shapes(*map(jnp.shape, (cell, *words))))
        return threefry2x32(*words, jnp.zeros_like(cell), machine.opaque(cell), machine)


@dataclasses.dataclass(frozen=True)
class Philox(_ByRow):
    """Counter (row, sample, leaf, four elements) under two words of the key, of any kind.

    A loop over samples, or fours, changes a word that is not multiplied before the second round:
    then four of the twenty products are the same in all of its turns.
    """

    words_per_sample = 4
    steps = 0, 0, 1, 0

    def words(self, key, num_samples, leaf):
        sample = lax.iota(jnp.uint32, num_samples)
        # Else XLA would draw them again for every sample.
        k0, k1 = lax.optimization_barrier(jax.random.bits(key, (2,), jnp.uint32))
        constant = (jnp.broadcast_to(w, sample.shape) for w in (k0, k1))
        return jnp.stack([*constant, sample, jnp.full_like(sample, np.uint32(leaf))])

    def math(self, noise, machine=PLAIN):
        return philox.NOISES[noise].math(machine)

    def draw(self, noise, words, counter, machine):
        _, column = counter
        drawn = self.bits_four(words, counter, machine)
        return philox.NOISES[noise].one(drawn, column & np.uint32(3), machine)

    def bits(self, words, counter, machine):
        _, column = counter
        return philox.at(self.bits_four(words, counter, machine), column & np.uint32(3))

    def draw_four(self, noise, words, counter, machine):
        return philox.NOISES[noise].four(self.bits_four(words, counter, machine), machine)

    def bits_four(self, words, counter, machine):
        k0, k1, sample, leaf = words
        row, column = counter
        counter = jnp.broadcast_arrays(row, sample, leaf, column >> np.uint32(2))
        return philox.philox4x32(k0, k1, tuple(counter), machine)


@dataclasses.dataclass(frozen=True)
class Hardware(_ByRow):
    """The generator of a TPU, seeded for each cell; only the kernels of rows have it."""

    words_per_sample = 2
    anywhere = False

    def words(self, key, num_samples, leaf):
        k0, k1 = jax.random.bits(key, (2,), jnp.uint32)
        words = threefry2x32(k0, k1, jnp.uint32(0), jnp.uint32(leaf))
        return jnp.broadcast_to(jnp.stack(words)[:, None], (2, num_samples))

    def in_fours(self, inner):
        del inner
        return False

    def cells(self, inner):
        return cells_of(self.last) if inner == 1 else None


THREEFRY = Threefry()

# A new stream is a class like these and a line here: last axis of a leaf -> its stream.
STREAMS: dict[str, Callable[[int], Stream]] = {
    "jax": lambda last: THREEFRY,
    "threefry_pair": ThreefryPair,
    "philox": Philox,
    "hardware": Hardware,
}
