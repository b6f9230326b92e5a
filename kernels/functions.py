"""Logarithm and inverse error function, without what a library's do for special values."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LEAST = np.float32(2 / 3).view(np.int32) + np.int32(1)  # of what is left without the exponent
_EXPONENT = np.int32(-(1 << 23))  # the bits of it, and the sign's
_LN2 = np.float32(np.log(2) * 2.0**-23)  # of one in these bits
# (log(1 + f) - f + f^2 / 2) / f^3 between -1/3 and 1/3, in powers of f: the polynomial of least
# largest error, 2^-27 of log(1 + f), found numerically.
_THIRD = (
    *(0.3333321511745453, -0.24999797344207764, 0.20010405778884888, -0.16680487990379333),
    *(0.14005866646766663, -0.12184262275695801, 0.13984450697898865, -0.12891680002212524),
)
# Of erf_inv(x) / x, in powers of w - 5/2 and of sqrt(w) - 3, with w = -log(1 - x^2) below and above
# 5: those of `lax.erf_inv` (Giles 2012, "Approximating the erfinv function").
_CENTRAL = (
    *(1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.00021858087),
    *(-4.39150654e-06, -3.5233877e-06, 3.43273939e-07, 2.81022636e-08),
)
_TAIL = (
    *(2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773),
    *(-0.00367342844, 0.00134934322, 0.000100950558, -0.000200214257),
)

Fma = Callable[..., jax.Array]  # as a `Machine`'s, and exact


def polynomial(coefficients: Iterable[jax.Array | np.float32], x: jax.Array, fma: Fma) -> jax.Array:
    """The sum of coefficients times powers of x, from the 0th on, by Horner's rule."""
    *others, total = coefficients
    for c in reversed(others):
        total = fma(total, x, c)
    return total


def log(a: jax.Array, fma: Fma) -> jax.Array:
    """log(a) of positive normal float32 values, within 1 ulp."""
    bits = lax.bitcast_convert_type(a, jnp.int32)
    exponent = (bits - _LEAST) & _EXPONENT
    f = lax.bitcast_convert_type(bits - exponent, jnp.float32) - np.float32(1)
    third = polynomial(map(np.float32, _THIRD), f, fma)
    log1p = fma(fma(third, f, np.float32(-0.5)), f * f, f)
    return fma(exponent.astype(jnp.float32), _LN2, log1p)


def erf_inv(x: jax.Array, fma: Fma) -> jax.Array:
    """erf_inv(x) of float32 values between -1 and 1, as `lax.erf_inv` but for rounding.

    That the square is rounded changes results by up to 2e-5, there and here.
    """
    w = log(1 - x * x, fma) * np.float32(-1)
    central = w < np.float32(5)
    t = jnp.where(central, w - np.float32(2.5), jnp.sqrt(w) - np.float32(3))
    pairs = zip(_CENTRAL, _TAIL, strict=True)
    coefficients = (jnp.where(central, np.float32(a), np.float32(b)) for a, b in pairs)
    return polynomial(coefficients, t, fma) * x
