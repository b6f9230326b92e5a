"""The two known noises: standard variates and log-density moments, as functions of random bits.

With l the log density of the standard noise, write h_m = (-1)^m l^(m). h_1 is the *score*,
-dl/dz. Every derivative of the estimator, of any order, in x and in sigma, is built from sums of
`h_m(z) z^n` (see `perturbk/primitives.py`), so this is all that a noise has to provide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.machine import Machine

_TINY = np.float32(np.finfo(np.float32).tiny)
_LOWEST = np.nextafter(np.float32(-1), np.float32(0))
ABOVE = 2.0**-22  # the step of `NoiseMath.above`
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


def _exponential(bits: jax.Array) -> jax.Array:
    """E = exp(-z) of the Gumbel variate z."""
    return -jnp.log(_positive(bits))


def _gumbel(bits: jax.Array) -> jax.Array:
    return -jnp.log(_exponential(bits))


def gumbel_moment(e: jax.Array, order: int, power: int) -> jax.Array:
    """h_m(z) z^n from E = exp(-z)."""
    # l = -z - exp(-z): h_1 = 1 - E, and h_m = -E for every higher order.
    h = np.float32(1) - e if order == 1 else -e
    return h if power == 0 else h * (-jnp.log(e)) ** power


def quick_gumbel_moment(u: jax.Array, order: int, machine: Machine) -> jax.Array:
    """h_m(z) from u = exp(-E)."""
    return machine.fma(machine.log2(u), np.float32(np.log(2)), np.float32(order == 1))


def _normal(bits: jax.Array) -> jax.Array:
    u = _unit(bits) * (np.float32(1) - _LOWEST) + _LOWEST
    return _SQRT2 * lax.erf_inv(jnp.maximum(u, _LOWEST))


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
        quick_moment: (bits, order m, machine) -> h_m(z), where it does with an absolute error of
            2^-21 and therefore with a machine's quick logarithm; None if it has none.
    """

    variate: Callable[[jax.Array], jax.Array]
    moment: Callable[[jax.Array, int, int], jax.Array]
    highest_order: int | None = None
    divided: bool = False
    above: Callable[[jax.Array], jax.Array] | None = None
    quick_moment: Callable[[jax.Array, int, Machine], jax.Array] | None = None


# Of uint32 bits, z equal to `jax.random`'s for the same bits. A new noise is one line here and in
# `philox.NOISES`, and its class in `perturbk/distributions.py`.
NOISES: dict[str, NoiseMath] = {
    "gumbel": NoiseMath(
        _gumbel,
        lambda bits, m, n: gumbel_moment(_exponential(bits), m, n),
        above=_above,
        quick_moment=lambda bits, m, machine: quick_gumbel_moment(_positive(bits), m, machine),
    ),
    "normal": NoiseMath(
        _normal,
        lambda bits, m, n: normal_moment(_normal(bits), m, n),
        highest_order=2,
        divided=True,
    ),
}
