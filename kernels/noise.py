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

_TINY = np.float32(np.finfo(np.float32).tiny)
_LOWEST = np.nextafter(np.float32(-1), np.float32(0))
_SQRT2 = np.float32(np.sqrt(2))


def _unit(bits: jax.Array) -> jax.Array:
    """Uniform float32 on [0, 1) from the upper 23 bits, as `jax.random.uniform` makes it."""
    mantissa = (bits >> np.uint32(9)) | np.uint32(0x3F800000)
    return lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)


def _exponential(bits: jax.Array) -> jax.Array:
    """E = exp(-z) of the Gumbel variate z. Clamped: a uniform of 0 would win every race."""
    return -jnp.log(jnp.maximum(_unit(bits), _TINY))


def _gumbel(bits: jax.Array) -> jax.Array:
    return -jnp.log(_exponential(bits))


def _gumbel_moment(bits: jax.Array, order: int, power: int) -> jax.Array:
    # l = -z - exp(-z): h_1 = 1 - E, and h_m = -E for every higher order.
    e = _exponential(bits)
    h = np.float32(1) - e if order == 1 else -e
    return h if power == 0 else h * (-jnp.log(e)) ** power


def _normal(bits: jax.Array) -> jax.Array:
    u = _unit(bits) * (np.float32(1) - _LOWEST) + _LOWEST
    return _SQRT2 * lax.erf_inv(jnp.maximum(u, _LOWEST))


def _normal_moment(bits: jax.Array, order: int, power: int) -> jax.Array:
    # l = -z^2/2: h_1 = z, h_2 = -1, and nothing above (`highest_order`).
    z = _normal(bits)
    return z ** (power + 1) if order == 1 else -(z**power)


@dataclasses.dataclass(frozen=True)
class NoiseMath:
    """What the kernels need to know of a noise; all functions are elementwise on uint32 bits.

    Attributes:
        variate: bits -> z, float32, equal to `jax.random`'s for the same bits.
        moment: (bits, order m >= 1, power n >= 0) -> h_m(z) z^n, float32.
        highest_order: orders above it vanish identically; None when none does.
    """

    variate: Callable[[jax.Array], jax.Array]
    moment: Callable[[jax.Array, int, int], jax.Array]
    highest_order: int | None = None


# A new noise is one line here, and its class in `perturbk/distributions.py`.
NOISES: dict[str, NoiseMath] = {
    "gumbel": NoiseMath(_gumbel, _gumbel_moment),
    "normal": NoiseMath(_normal, _normal_moment, highest_order=2),
}
