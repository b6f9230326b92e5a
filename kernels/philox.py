"""Philox-4x32: four words of random bits from ten rounds, and the noise that is made of them.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Half of the rounds of Threefry
for twice as many words, where the hardware multiplies. `rng="philox"` draws from it: other numbers
than `jax.random`, with the whole 32 bits of a word in the tail.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.functions import polynomial
from perturbk.kernels.machine import ANGLE, PLAIN, Machine
from perturbk.kernels.noise import (
    ABOVE,
    Factors,
    NoiseMath,
    gumbel_moment,
    near_normal_moments,
    normal_moment,
    quick_gumbel_moments,
)

Words = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

_MULTIPLIERS = np.uint32(0xD2511F53), np.uint32(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
# Of a uniform, for one bit: a little less than 2^-32, lest any be rounded to 1.
_STEP = np.float32(2.0**-32 * (1 - 2.0**-24))
# -log2(1 - v) / v up to v = 1/32, within 2^-21.8 of it: coefficients of least largest error.
_SERIES = tuple(np.float32(c) for c in (1.4426953792572021, 0.7211415767669678, 0.4983075261116028))
_LN2 = np.float32(np.log(2))
_LOG_LN2 = np.float32(np.log(np.log(2)))
_QUARTER = np.uint32(1 << 30)  # of a turn


def philox4x32(
    k0: jax.Array, k1: jax.Array, counter: tuple[jax.Array, ...], machine: Machine = PLAIN
) -> Words:
    """Encrypts four counter words under two key words, 10 rounds; all uint32, broadcast."""
    c0, c1, c2, c3 = counter
    m0, m1 = _MULTIPLIERS
    for i in range(10):
        w0, w1 = (np.uint32(i * w & 0xFFFFFFFF) for w in _WEYL)
        (high0, low0), (high1, low1) = machine.product(c0, m0), machine.product(c2, m1)
        c0, c1, c2, c3 = high1 ^ c1 ^ (k0 + w0), low1, high0 ^ c3 ^ (k1 + w1), low0
    return c0, c1, c2, c3


def _unit(bits: jax.Array, machine: Machine) -> jax.Array:
    """(bits + 1/2) / 2^32 in float32, within its step there, from 2^-33 to 1 - 2^-24."""
    return machine.fma(bits.astype(jnp.float32), _STEP, np.float32(2.0**-33))


def log2_rest(bits: jax.Array, machine: Machine = PLAIN) -> jax.Array:
    """log2(1 - v) with v = (bits + 1/2) / 2^32, between -25 and -2^-33.

    Near zero by a series, for 1 - v has no digits left there: of the exponential variates that are
    made of it, the smallest, which win a race, would be multiples of 2^-24.
    """
    v = _unit(bits, machine)
    series = polynomial((-c for c in _SERIES), v, machine.fma)
    return jnp.where(v < np.float32(1 / 32), v * series, machine.log2(1 - v))


def _rest(bits: jax.Array, machine: Machine) -> jax.Array:
    """1 - v, as `log2_rest` rounds it where it is small."""
    return machine.fma(bits.astype(jnp.float32), -_STEP, np.float32(1))


def _above(bits: jax.Array) -> jax.Array:
    """A little more than 1 - v, with v rounded down to 23 bits."""
    below = (bits >> np.uint32(9)) + np.uint32(0x3F800000 - 1)  # 1 + v, and a step less
    return np.float32(2 + ABOVE) - lax.bitcast_convert_type(below, jnp.float32)


def radius(bits: jax.Array, machine: Machine = PLAIN) -> jax.Array:
    """Length of a standard normal vector in the plane, up to 6.7.

    The tail has all the digits of small uniforms here; those next to one only blur the centre.
    """
    log = machine.log(_unit(bits, machine))
    return jnp.sqrt(jnp.abs(np.float32(-2) * log))  # next to one, log may round up


def cos_sin_of_turns(bits: jax.Array, machine: Machine = PLAIN) -> tuple[jax.Array, jax.Array]:
    """cos and sin of 2 pi bits / 2^32, to float32 rounding, the same on every platform."""
    fma = machine.fma
    quadrant = (bits + (_QUARTER >> np.uint32(1))) >> np.uint32(30)
    rest = lax.bitcast_convert_type(bits - (quadrant << np.uint32(30)), jnp.int32)
    a = rest.astype(jnp.float32) * ANGLE  # within pi/4 of zero
    s = a * a
    # Minimax polynomials on that interval, from Cephes (sinf.c).
    sin = fma(s, np.float32(-1.9515295891e-4), np.float32(8.3321608736e-3))
    sin = fma(fma(sin, s, np.float32(-1.6666654611e-1)) * s, a, a)
    cos = fma(s, np.float32(2.443315711809948e-5), np.float32(-1.388731625493765e-3))
    cos = fma(fma(cos, s, np.float32(4.166664568298827e-2)), s, np.float32(-0.5))
    cos = fma(cos, s, np.float32(1))
    even = (quadrant & np.uint32(1)) == 0
    return (
        _signed(jnp.where(even, cos, sin), quadrant + np.uint32(1)),
        _signed(jnp.where(even, sin, cos), quadrant),
    )


def _signed(a: jax.Array, quadrant: jax.Array) -> jax.Array:
    """a, with its sign changed where bit 1 of the quadrant is set."""
    sign = (quadrant << np.uint32(30)) & np.uint32(1 << 31)
    return lax.bitcast_convert_type(lax.bitcast_convert_type(a, jnp.uint32) ^ sign, jnp.float32)


def _two_normals(w0: jax.Array, w1: jax.Array, machine: Machine) -> tuple[jax.Array, jax.Array]:
    """Box and Muller 1958: a radius and an angle make two normal variates."""
    r = radius(w0, machine)
    cos, sin = cos_sin_of_turns(w1, machine)
    return r * cos, r * sin


def _near_normals(words: Sequence[jax.Array], machine: Machine) -> tuple[Factors, ...]:
    """The same by quick functions: radius and cosine or sine of each."""
    found = []
    for w0, w1 in zip(words[::2], words[1::2], strict=True):
        square = np.float32(-2 * np.log(2)) * machine.log2(_unit(w0, machine))
        r = machine.sqrt(jnp.abs(square))
        found += [(r, part) for part in machine.cos_sin(w1)]
    return tuple(found)


def at(words: Words, place: jax.Array) -> jax.Array:
    """One of four words, by its place, 0 to 3."""
    w0, w1, w2, w3 = words
    return jnp.where(place < 2, jnp.where(place == 0, w0, w1), jnp.where(place == 2, w2, w3))


class _Gumbel:
    """Drawn is -E / log(2), with E = exp(-z) a standard exponential variate, one of each word."""

    def four(self, words: Words, machine: Machine = PLAIN) -> tuple[jax.Array, ...]:
        return tuple(log2_rest(w, machine) for w in words)

    def one(self, words: Words, place: jax.Array, machine: Machine = PLAIN) -> jax.Array:
        return log2_rest(at(words, place), machine)

    def math(self, machine: Machine = PLAIN) -> NoiseMath:
        return NoiseMath(
            lambda drawn: machine.fma(machine.log2_of_negative(drawn), -_LN2, -_LOG_LN2),
            lambda drawn, m, n: gumbel_moment(drawn * -_LN2, m, n),
            above=_above,
            quick_moments=quick_gumbel_moments(_rest),
        )


class _Normal:
    """Drawn is z itself, two from two words."""

    def four(self, words: Words, machine: Machine = PLAIN) -> tuple[jax.Array, ...]:
        w0, w1, w2, w3 = words
        return (*_two_normals(w0, w1, machine), *_two_normals(w2, w3, machine))

    def one(self, words: Words, place: jax.Array, machine: Machine = PLAIN) -> jax.Array:
        w0, w1, w2, w3 = words
        first = place < 2
        r = radius(jnp.where(first, w0, w2), machine)
        cos, sin = cos_sin_of_turns(jnp.where(first, w1, w3), machine)
        return r * jnp.where((place & np.uint32(1)) == 0, cos, sin)

    def math(self, machine: Machine = PLAIN) -> NoiseMath:
        del machine
        return NoiseMath(
            lambda z: z,
            normal_moment,
            highest_order=2,
            near=_near_normals,
            quick_moments=near_normal_moments(_near_normals),
            together=4,
        )


# What is drawn from the four words at a counter, all of it or at one place (0 to 3), and the noise.
NOISES = {"gumbel": _Gumbel(), "normal": _Normal()}
