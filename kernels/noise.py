"""The two known noises: standard variates and log-density moments, as functions of random bits.

With l the log density of the standard noise, write h_m = (-1)^m l^(m). h_1 is the *score*,
-dl/dz. Every derivative of the estimator, of any order, in x and in sigma, is built from sums of
`h_m(z) z^n` (see `perturbk/primitives.py`), so this is all that a noise has to provide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.functions import polynomial
from perturbk.kernels.machine import PLAIN, Machine, negative

Words = Sequence[jax.Array]  # uint32
Factors = tuple[jax.Array, jax.Array]

_TINY = np.float32(np.finfo(np.float32).tiny)
_LOWEST = np.nextafter(np.float32(-1), np.float32(0))
ABOVE = 2.0**-22  # the step of `NoiseMath.above`
NEAR = 2.0**-15  # the error of `NoiseMath.near`
Z_LEAST, Z_MOST = -7.0, 23.0  # no variate of any stream or noise lies outside
_SQRT2 = np.float32(np.sqrt(2))


def from_one_to_two(bits: jax.Array) -> jax.Array:
    """Float32 on [1, 2) from the upper 23 bits."""
    mantissa = (bits >> np.uint32(9)) | np.uint32(0x3F800000)
    return lax.bitcast_convert_type(mantissa, jnp.float32)


def _unit(bits: jax.Array) -> jax.Array:
    """Uniform float32 on [0, 1) from the upper 23 bits, as `jax.random.uniform` makes it."""
    return from_one_to_two(bits) - np.float32(1)


def _above(bits: jax.Array) -> jax.Array:
    return from_one_to_two(bits) - np.float32(1 - ABOVE)


def _positive(bits: jax.Array) -> jax.Array:
    """The uniform of a Gumbel variate. Clamped: one of 0 would win every race."""
    return jnp.maximum(_unit(bits), _TINY)


def _exponential(bits: jax.Array, machine: Machine) -> jax.Array:
    """E = exp(-z) of the Gumbel variate z."""
    return negative(machine.full_log(_positive(bits)))


def gumbel_moment(e: jax.Array, order: int, power: int) -> jax.Array:
    """h_m(z) z^n from E = exp(-z)."""
    # l = -z - exp(-z): h_1 = 1 - E, and h_m = -E for every higher order.
    h = np.float32(1) - e if order == 1 else -e
    return h if power == 0 else h * (-jnp.log(e)) ** power


@dataclasses.dataclass(frozen=True)
class QuickMoments:
    """h_m(z) = scale * value + shift, of which a sum over samples takes the values.

    Attributes:
        values: (words of bits, machine) -> a value of each.
        scale, shift: float32.
    """

    values: Callable[[Words, Machine], tuple[jax.Array, ...]]
    scale: np.float32
    shift: np.float32

    def __call__(self, words: Words, machine: Machine) -> tuple[jax.Array, ...]:
        """h_m(z) of each."""
        return self.of_values(self.values(words, machine), np.float32(1), machine)

    def of_values(
        self, values: Sequence[jax.Array], factor: jax.Array | np.float32, machine: Machine
    ) -> tuple[jax.Array, ...]:
        """factor * h_m(z), from factor * value of each; sums of many likewise."""
        if (self.scale, self.shift) == (1, 0):
            return tuple(values)
        return tuple(machine.fma(value, self.scale, self.shift * factor) for value in values)


def quick_gumbel_moments(
    u: Callable[[jax.Array, Machine], jax.Array],
) -> Callable[[int], QuickMoments]:
    """`NoiseMath.quick_moments` from (bits, machine) -> u = exp(-E)."""

    def values(words: Words, machine: Machine) -> tuple[jax.Array, ...]:
        return tuple(machine.log2(u(bits, machine)) for bits in words)

    return lambda order: QuickMoments(values, np.float32(np.log(2)), np.float32(order == 1))


def _normal(bits: jax.Array, machine: Machine) -> jax.Array:
    u = _unit(bits) * (np.float32(1) - _LOWEST) + _LOWEST
    return _SQRT2 * machine.erf_inv(jnp.maximum(u, _LOWEST))


_NEAR_NORMAL = (
    *(3.203092575073242, 1.5729647874832153, -0.006418662611395121, -0.045660730451345444),
    *(0.04558681696653366, -0.01981857232749462, -0.0033101325388997793, 0.008891119621694088),
    *(-0.002627483569085598, -0.001775057869963348, 0.000991114298813045, 0.0001527079875813797),
    -0.00012059330038027838,
)


def _near_normal(bits: jax.Array, machine: Machine) -> Factors:
    """Factors of `_normal`: to 2^-19 where a compiler rounds u^2 as `lax.erf_inv` does, else 2^-15.

    With u on (-1, 1), z / u is a smooth function of w = -log(1 - u^2), and nearly a polynomial in
    the root of w + 1.75. Its coefficients are those of least largest error in z, 6e-7, found
    numerically, in powers of the distance from the middle.
    """
    u = machine.fma(_unit(bits), np.float32(1) - _LOWEST, _LOWEST)
    log = machine.log2(1 - u * u)
    root = machine.sqrt(machine.fma(log, np.float32(-np.log(2)), np.float32(1.75)))
    t = root - np.float32(2.76455368)
    return u, polynomial(map(np.float32, _NEAR_NORMAL), t, machine.fma)


def _near_normals(words: Words, machine: Machine) -> tuple[Factors, ...]:
    return tuple(_near_normal(bits, machine) for bits in words)


def near_normal_moments(
    near: Callable[[Words, Machine], tuple[Factors, ...]],
) -> Callable[[int], QuickMoments]:
    """`NoiseMath.quick_moments` from `NoiseMath.near`."""

    def products(words: Words, machine: Machine) -> tuple[jax.Array, ...]:
        return tuple(a * b for a, b in near(words, machine))

    def zeros(words: Words, machine: Machine) -> tuple[jax.Array, ...]:
        del machine
        return tuple(jnp.zeros(bits.shape, jnp.float32) for bits in words)

    score = QuickMoments(products, np.float32(1), np.float32(0))
    constant = QuickMoments(zeros, np.float32(1), np.float32(-1))
    return lambda order: score if order == 1 else constant


def normal_moment(z: jax.Array, order: int, power: int) -> jax.Array:
    """h_m(z) z^n."""
    # l = -z^2/2: h_1 = z, h_2 = -1, and nothing above (`highest_order`).
    return z ** (power + 1) if order == 1 else -(z**power)


@dataclasses.dataclass(frozen=True)
class NoiseMath:
    """What the kernels need to know of a noise, as elementwise functions of what a stream draws.

    Attributes:
        variate: drawn -> z, float32.
        moment: (drawn, order m >= 1, power n >= 0) -> h_m(z) z^n, float32.
        highest_order: orders above it vanish identically; None when none does.
        divided: whether bits are used on both sides of a logarithm, where XLA cuts: unless they are
            held, each side draws them.
        above: bits -> a number from u + 2^-22 to u + 2^-21, where exp(-z) = -log u; None if z is
            not made so.
        near: (words of bits, machine) -> two factors of each z by a machine's quick functions,
            within 2^-15 of what `variate` makes there; None if there is `above` or nothing quick.
        quick_moments: order m -> h_m(z) from words of bits, likewise, or within 2^-21 if there is
            `above`; None if it has none.
        together: the words that these two take: any number, or as many as are drawn together.
    """

    variate: Callable[[jax.Array], jax.Array]
    moment: Callable[[jax.Array, int, int], jax.Array]
    highest_order: int | None = None
    divided: bool = False
    above: Callable[[jax.Array], jax.Array] | None = None
    near: Callable[[Words, Machine], tuple[Factors, ...]] | None = None
    quick_moments: Callable[[int], QuickMoments] | None = None
    together: int = 1


def _gumbel_math(machine: Machine = PLAIN) -> NoiseMath:
    return NoiseMath(
        lambda bits: negative(machine.full_log(_exponential(bits, machine))),
        lambda bits, m, n: gumbel_moment(_exponential(bits, machine), m, n),
        above=_above,
        quick_moments=quick_gumbel_moments(lambda bits, _: _positive(bits)),
    )


def _normal_math(machine: Machine = PLAIN) -> NoiseMath:
    return NoiseMath(
        lambda bits: _normal(bits, machine),
        lambda bits, m, n: normal_moment(_normal(bits, machine), m, n),
        highest_order=2,
        divided=True,
        near=_near_normals,
        quick_moments=near_normal_moments(_near_normals),
    )


# Machine -> math of uint32 bits, z equal to `jax.random`'s for the same bits. A new noise is one
# line here and in `philox.NOISES`, and its class in `perturbk/distributions.py`.
NOISES: dict[str, Callable[..., NoiseMath]] = {"gumbel": _gumbel_math, "normal": _normal_math}
