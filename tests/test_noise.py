"""Noise from bits: equal to `jax.random`, with the moments of its density, finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import perturbk
from oracles import NOISE_SAMPLERS
from perturbk.kernels.noise import NOISES
from perturbk.kernels.threefry import element_bits

EPS = np.finfo(np.float32).eps
EXTREME = np.array([0, 1, 0x1FF, 0x200, 0x7FFFFFFF, 0x80000000, 0xFFFFFDFF, 0xFFFFFFFF], np.uint32)
BITS = np.concatenate([EXTREME, np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32)])
# h_m = (-1)^m times the m-th derivative of the log density, in float64.
MOMENTS = {
    "gumbel": lambda z, m: 1 - np.exp(-z) if m == 1 else -np.exp(-z),
    "normal": lambda z, m: z if m == 1 else -np.ones_like(z),
}


def exact_variate(noise, bits):
    """The variate of the same float32 uniform, in float64."""
    u = (bits >> np.uint32(9)).astype(np.float32) * np.float32(2.0**-23)
    if noise == "gumbel":
        u = np.maximum(u, np.finfo(np.float32).tiny)
        return -np.log(-np.log(u.astype(np.float64)))
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    u = np.maximum(u * (np.float32(1) - lowest) + lowest, lowest)
    return np.sqrt(2) * special.erfinv(u.astype(np.float64))


def orders(noise):
    return range(1, (NOISES[noise]().highest_order or 4) + 1)


@pytest.mark.parametrize("noise", NOISES)
def test_variates_are_bit_equal_to_jax_random(noise):
    key, shape = jax.random.key(5), (40, 50)

    @jax.jit
    def variates(words):
        element = jax.lax.iota(jnp.uint32, 2000)
        return NOISES[noise]().variate(element_bits(words[0], words[1], element))

    expected = jax.jit(lambda k: NOISE_SAMPLERS[noise.title()](k, shape))(key)
    np.testing.assert_array_equal(variates(jax.random.key_data(key)), expected.ravel())


@pytest.mark.parametrize("noise", NOISES)
def test_variates_are_finite_and_increase_with_the_bits(noise):
    bits = np.unique(np.concatenate([EXTREME, np.arange(0, 2**32, 2**16, dtype=np.uint32)]))
    z = np.asarray(NOISES[noise]().variate(bits))
    assert np.isfinite(z).all()
    assert (np.diff(z) >= 0).all() and z[0] < -4 and z[-1] > 5


@pytest.mark.parametrize("noise", NOISES)
def test_moments_are_finite_and_those_of_the_density(noise):
    z = exact_variate(noise, BITS)
    for order in orders(noise):
        for power in range(4):
            found = np.asarray(NOISES[noise]().moment(BITS, order, power), np.float64)
            assert np.isfinite(found).all()
            h = MOMENTS[noise](z, order)
            # Eight roundings in h and in each factor z, absolute since z passes through zero.
            scale = (power + 1) * (1 + np.abs(h)) * (1 + np.abs(z)) ** (power + 1)
            assert np.max(np.abs(found - h * z**power) / scale) < 8 * EPS


@pytest.mark.parametrize("noise", NOISES)
def test_log_prob_has_these_moments(noise):
    log_prob = getattr(perturbk, noise.title())().log_prob
    z = jnp.linspace(-3, 5, 9)
    derivative = log_prob
    for order in orders(noise):
        derivative = jax.grad(derivative)
        expected = (-1) ** order * MOMENTS[noise](np.asarray(z, np.float64), order)
        np.testing.assert_allclose(jax.vmap(derivative)(z), expected, 8 * EPS, 8 * EPS)


def test_moments_above_the_highest_order_vanish():
    third = jax.grad(jax.grad(jax.grad(perturbk.Normal().log_prob)))
    assert NOISES["normal"]().highest_order == 2 and third(1.5) == 0
