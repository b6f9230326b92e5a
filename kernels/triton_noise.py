"""Device functions of the Triton kernels: Threefry's bits, noise and moments.

The same numbers as `threefry.py` and `noise.py`. Nothing here is imported before the implementation
"triton" runs, since Triton is an optional dependency.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

# Triton's interpreter, which tests use, has neither libdevice nor inline assembly.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_TINY = tl.constexpr(2.0**-126)
_LOWEST = tl.constexpr(-1 + 2.0**-24)
_SPAN = tl.constexpr(2.0)  # 1 - _LOWEST, in float32
_SQRT2 = tl.constexpr(1.4142135381698608)


@triton.jit
def opaque(x, DRAWS: tl.constexpr):
    """uint32 values that NVIDIA's compiler takes as they are.

    It would otherwise regroup the sums of the first rounds of Threefry with those that made the
    counter, and need half as many instructions again.
    """
    if DRAWS.assembly:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], tl.uint32, True, 1)
    return x


@triton.jit
def _rounds(a, b, R0: tl.constexpr, R1: tl.constexpr, R2: tl.constexpr, R3: tl.constexpr):
    a += b
    b = ((b << R0) | (b >> (32 - R0))) ^ a
    a += b
    b = ((b << R1) | (b >> (32 - R1))) ^ a
    a += b
    b = ((b << R2) | (b >> (32 - R2))) ^ a
    a += b
    b = ((b << R3) | (b >> (32 - R3))) ^ a
    return a, b


@triton.jit
def element_bits(k0, k1, element):
    """The 32 bits of `threefry.element_bits`; all uint32, `element` of full shape."""
    k2 = k0 ^ k1 ^ 0x1BD11BDA
    a, b = _rounds(k0, element + k1, 13, 15, 26, 6)
    a, b = _rounds(a + k1, b + (k2 + 1), 17, 29, 16, 24)
    a, b = _rounds(a + k2, b + (k0 + 2), 13, 15, 26, 6)
    a, b = _rounds(a + k0, b + (k1 + 3), 17, 29, 16, 24)
    a, b = _rounds(a + k1, b + (k2 + 4), 13, 15, 26, 6)
    return (a + k2) ^ (b + (k0 + 5))


@triton.jit
def log(x):
    # Not `tl.log`, whose error would change the winners of close races.
    return tl.log(x) if _INTERPRETED else libdevice.log(x)


@triton.jit
def _log1p(x):
    return tl.log(1.0 + x) if _INTERPRETED else libdevice.log1p(x)


@triton.jit
def _unit(bits):
    return ((bits >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 1.0


@triton.jit
def _exponential(bits):
    return log(tl.maximum(_unit(bits), _TINY)) * -1.0


@triton.jit
def _erf_inv(x):
    """Giles 2012, "Approximating the erfinv function": the polynomials of `lax.erf_inv`."""
    w = -_log1p(-x * x)
    central = w < 5.0
    w = tl.where(central, w - 2.5, tl.sqrt(w) - 3.0)
    p = tl.where(central, 2.81022636e-08, -0.000200214257)
    p = tl.where(central, 3.43273939e-07, 0.000100950558) + p * w
    p = tl.where(central, -3.5233877e-06, 0.00134934322) + p * w
    p = tl.where(central, -4.39150654e-06, -0.00367342844) + p * w
    p = tl.where(central, 0.00021858087, 0.00573950773) + p * w
    p = tl.where(central, -0.00125372503, -0.0076224613) + p * w
    p = tl.where(central, -0.00417768164, 0.00943887047) + p * w
    p = tl.where(central, 0.246640727, 1.00167406) + p * w
    p = tl.where(central, 1.50140941, 2.83297682) + p * w
    return p * x


@triton.jit
def _normal(bits):
    return _SQRT2 * _erf_inv(tl.maximum(_unit(bits) * _SPAN + _LOWEST, _LOWEST))


@triton.jit
def drawn(bits, DRAWS: tl.constexpr):
    """What is drawn from 32 random bits: E = exp(-z) if the noise is Gumbel's, else z itself."""
    return _exponential(bits) if DRAWS.gumbel else _normal(bits)


@triton.jit
def _power(x, N: tl.constexpr):
    out = x
    for _ in tl.static_range(N - 1):
        out = out * x
    return out


@triton.jit
def moment(drawn, ORDER: tl.constexpr, POWER: tl.constexpr, DRAWS: tl.constexpr):
    """h_m(z) z^n of what was drawn, for m = ORDER >= 1 and n = POWER; see `noise.py`."""
    if DRAWS.gumbel:
        h = 1.0 - drawn if ORDER == 1 else -drawn
        if POWER > 0:
            h *= _power(-log(drawn), POWER)
    elif ORDER == 1:
        h = _power(drawn, POWER + 1)
    elif POWER == 0:
        h = tl.zeros_like(drawn) - 1.0
    else:
        h = -_power(drawn, POWER)
    return h
