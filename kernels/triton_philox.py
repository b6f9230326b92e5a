"""Device functions of the Triton kernels for `rng="philox"`: the numbers of `philox.py`."""

import triton
import triton.language as tl

from perturbk.kernels.triton_noise import log

_TURN = tl.constexpr(1.4629180792671596e-09)  # 2 pi / 2^32
_LN2 = tl.constexpr(0.6931471805599453)
_STEP = tl.constexpr(2.0**-32 * (1 - 2.0**-24))


@triton.jit
def _product(a, b: tl.constexpr):
    """(high, low) words of the product of uint32 values and a constant: one wide multiplication."""
    wide = a.to(tl.uint64) * b
    return (wide >> 32).to(tl.uint32), wide.to(tl.uint32)


@triton.jit
def encrypted(words, row, four):
    """Four words of random bits at a counter; all uint32, one of them of full shape."""
    k0, k1, sample, leaf = words
    c0, c1, c2, c3 = row, sample, leaf, four
    for i in tl.static_range(10):
        high0, low0 = _product(c0, 0xD2511F53)
        high1, low1 = _product(c2, 0xCD9E8D57)
        c0 = high1 ^ c1 ^ (k0 + (i * 0x9E3779B9) % (1 << 32))
        c2 = high0 ^ c3 ^ (k1 + (i * 0xBB67AE85) % (1 << 32))
        c1, c3 = low1, low0
    return c0, c1, c2, c3


@triton.jit
def short_log(x, DRAWS: tl.constexpr):
    """log to 2^-21 or so: two instructions on NVIDIA's hardware, where `log` takes eighteen."""
    if DRAWS.assembly:
        binary = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1
        )
        out = binary * _LN2
    else:
        out = log(x)
    return out


@triton.jit
def _unit(bits):
    return bits.to(tl.float32) * _STEP + 2.0**-33


@triton.jit
def exponential(bits, DRAWS: tl.constexpr):
    """-log(1 - v), near zero by its series; see `philox.log2_rest`."""
    v = _unit(bits)
    series = (v * 0.34540045 + 0.49985725) * v + 1.0000002
    return tl.where(v < 1 / 32, v * series, short_log(1.0 - v, DRAWS) * -1.0)


@triton.jit
def _radius(bits, DRAWS: tl.constexpr):
    return tl.sqrt(tl.abs(-2.0 * short_log(_unit(bits), DRAWS)))


@triton.jit
def _cos_sin(bits):
    """cos of so many turns, and of a quarter less, which is the sine."""
    quadrant = (bits + (1 << 29)) >> 30
    a = (bits - (quadrant << 30)).to(tl.int32, bitcast=True).to(tl.float32) * _TURN
    s = a * a
    sin = s * -1.9515295891e-4 + 8.3321608736e-3
    sin = (sin * s + -1.6666654611e-1) * s * a + a
    cos = s * 2.443315711809948e-5 + -1.388731625493765e-3
    cos = (cos * s + 4.166664568298827e-2) * s + -0.5
    cos = cos * s + 1.0
    even = (quadrant & 1) == 0
    first, second = tl.where(even, cos, sin), tl.where(even, sin, cos)
    negative = (quadrant == 1) | (quadrant == 2)
    return tl.where(negative, -first, first), tl.where(quadrant >= 2, -second, second)


@triton.jit
def _two_normals(w0, w1, DRAWS: tl.constexpr):
    r = _radius(w0, DRAWS)
    cos, sin = _cos_sin(w1)
    return r * cos, r * sin


@triton.jit
def all_four(words, DRAWS: tl.constexpr):
    """What is drawn from four words of bits: E = exp(-z) if the noise is Gumbel's, else z."""
    w0, w1, w2, w3 = words
    if DRAWS.gumbel:
        a, b = exponential(w0, DRAWS), exponential(w1, DRAWS)
        c, d = exponential(w2, DRAWS), exponential(w3, DRAWS)
    else:
        a, b = _two_normals(w0, w1, DRAWS)
        c, d = _two_normals(w2, w3, DRAWS)
    return a, b, c, d


@triton.jit
def one_of_four(words, place, DRAWS: tl.constexpr):
    """The one at a place, 0 to 3."""
    w0, w1, w2, w3 = words
    first, even = place < 2, (place & 1) == 0
    if DRAWS.gumbel:
        bits = tl.where(first, tl.where(even, w0, w1), tl.where(even, w2, w3))
        out = exponential(bits, DRAWS)
    else:
        cos, sin = _cos_sin(tl.where(first, w1, w3))
        out = _radius(tl.where(first, w0, w2), DRAWS) * tl.where(even, cos, sin)
    return out
