"""The natural logarithm, without what a library's does for zero, infinity and smaller numbers."""

from __future__ import annotations

from collections.abc import Callable

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


def log(a: jax.Array, fma: Callable[..., jax.Array]) -> jax.Array:
    """log(a) of positive normal float32 values, within 1 ulp; fma: as a `Machine`'s, exact."""
    bits = lax.bitcast_convert_type(a, jnp.int32)
    exponent = (bits - _LEAST) & _EXPONENT
    f = lax.bitcast_convert_type(bits - exponent, jnp.float32) - np.float32(1)
    *others, total = map(np.float32, _THIRD)
    for c in reversed(others):
        total = fma(total, f, c)
    total = fma(fma(total, f, np.float32(-0.5)), f * f, f)
    return fma(exponent.astype(jnp.float32), _LN2, total)
