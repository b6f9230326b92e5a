"""The noise of one row: what the kernels of the ops ask of a stream."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from perturbk.kernels.held import held
from perturbk.kernels.machine import PLAIN, Machine
from perturbk.kernels.noise import NoiseMath
from perturbk.kernels.streams import Counter, Drawn, Stream, word_like
from perturbk.kernels.tuning import TUNING


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["words", "row"],
    meta_fields=["stream", "noise", "d", "inner", "machine"],
)
@dataclasses.dataclass(frozen=True)
class Draws:
    """The noise of one row, or of several side by side, for a run of samples."""

    stream: Stream
    noise: str
    words: Counter  # each broadcasts against the coordinates
    row: jax.Array  # 32-bit integers, likewise
    d: int
    inner: int
    machine: Machine = PLAIN

    @property
    def math(self) -> NoiseMath:
        return self.stream.math(self.noise, self.machine)

    @property
    def in_fours(self) -> bool:
        return self.stream.in_fours(self.inner)

    def drawn(self, coordinate: jax.Array) -> jax.Array:
        """What the stream draws at integer coordinates of the row."""
        counter = self.stream.counters(self.row, self.d, self.inner)(coordinate)
        return self.stream.draw(self.noise, self.words, counter, self.machine)

    def drawn_four(self, four: jax.Array) -> Drawn:
        """The same at coordinates 4 * four + (0, 1, 2, 3)."""
        return self._four(
            four,
            functools.partial(self.stream.draw, self.noise),
            functools.partial(self.stream.draw_four, self.noise),
        )

    def _four(self, four: jax.Array, one: Callable, together: Callable) -> Drawn:
        counter_at = self.stream.counters(self.row, self.d, self.inner)
        first = four * word_like(4, four)
        if self.in_fours:
            return together(self.words, counter_at(first), self.machine)
        counters = (counter_at(first + word_like(i, four)) for i in range(4))
        return tuple(one(self.words, counter, self.machine) for counter in counters)

    def apart(self, f: Callable[[jax.Array], jax.Array], drawn: jax.Array) -> jax.Array:
        """f(drawn), elementwise, on a CPU in a loop of its own; in XLA only.

        A loop over the last axis leaves to scalars what does not fill a vector. If that is much,
        the axis before it comes last, if it is longer, and all axes are one if both are short.
        """

        def on_cpu(drawn: jax.Array) -> jax.Array:
            *_, above, last = (1, *drawn.shape)
            if not _ragged(last):
                return f(self.held(drawn))
            if not isinstance(above, int) or above > last:
                turned = self.held(drawn.swapaxes(-1, -2))
                return self.held(f(turned)).swapaxes(-1, -2)
            if last >= TUNING.vector_lanes:
                return f(self.held(drawn))
            return self.held(f(self.held(drawn.reshape(-1)))).reshape(drawn.shape)

        return lax.platform_dependent(drawn, cpu=on_cpu, default=f)

    def held(self, a: jax.Array) -> jax.Array:
        """What is made of them, finished before anything that uses it begins; in XLA only."""
        return held(lambda _, a: a, self.words[0], a)

    def __call__(self, coordinate: jax.Array) -> jax.Array:
        """Standard noise z at these coordinates."""
        return self.math.variate(self.drawn(coordinate))

    def four(self, four: jax.Array) -> tuple[jax.Array, ...]:
        """The same at coordinates 4 * four + (0, 1, 2, 3)."""
        return tuple(map(self.math.variate, self.drawn_four(four)))

    def bits(self, coordinate: jax.Array) -> jax.Array:
        """The bits there, of which a Gumbel variate is made."""
        counter = self.stream.counters(self.row, self.d, self.inner)(coordinate)
        return self.stream.bits(self.words, counter, self.machine)

    def bits_four(self, four: jax.Array) -> tuple[jax.Array, ...]:
        """The same at coordinates 4 * four + (0, 1, 2, 3)."""
        return self._four(four, self.stream.bits, self.stream.bits_four)


def _ragged(n: int) -> bool:
    """Whether scalars take much of the time of a loop over n, at ten times that of a vector's.

    Not known of a symbolic n.
    """
    return isinstance(n, int) and n % TUNING.vector_lanes * 10 > n


def perturbed(
    draw: Draws,
    x: jax.Array,
    sigma: jax.Array,
    num_lanes: int,
    f: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """f(x + sigma z) of a block: [rows, shared, d, lanes]; arguments as in `argmax.codes`.

    f: elementwise. Its values are stored, or each of their uses would draw the noise anew.
    """
    rows, shared, d = x.shape

    def on_block(draw: Draws, x: jax.Array, sigma: jax.Array) -> jax.Array:
        coordinate = lax.broadcasted_iota(jnp.uint32, (rows, d, num_lanes), 1)
        z = draw.apart(draw.math.variate, draw.drawn(coordinate))
        if shared > 1:
            z = draw.held(z)
        return f(x[..., None] + sigma[..., None] * z[:, None])

    return held(on_block, draw, x, sigma)
