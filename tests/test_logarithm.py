"""The kernels' own logarithm."""

import jax.numpy as jnp
import numpy as np
import pytest

from perturbk.kernels import logarithm

UNIFORMS = np.arange(1, 1 << 23, dtype=np.float32) / np.float32(1 << 23)  # all but 0
VALUES = {
    "uniforms": UNIFORMS,
    "exponentials": -np.log(UNIFORMS.astype(np.float64)).astype(np.float32),
    "all exponents": np.random.default_rng(0)
    .integers(0x00800000, 0x7F800000, 1 << 20, dtype=np.int32)
    .view(np.float32),
}


def exact_fma(a, b, c):
    return jnp.asarray((np.float64(a) * np.float64(b) + np.float64(c)).astype(np.float32))


def ulps(values, fma=exact_fma):
    found = np.asarray(logarithm.log(jnp.asarray(values), fma), np.float64)
    exact = np.log(values.astype(np.float64))
    return np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32))


@pytest.mark.parametrize("values", VALUES)
def test_within_one_ulp(values):
    assert np.max(ulps(VALUES[values])) < 1


def test_of_one_is_zero():
    assert logarithm.log(jnp.float32(1), exact_fma) == 0


def test_products_that_are_rounded_are_caught():
    assert np.max(ulps(UNIFORMS, lambda a, b, c: a * b + c)) > 1


@pytest.mark.parametrize("place", range(len(logarithm._THIRD)))
def test_a_wrong_coefficient_is_caught(place, monkeypatch):
    wrong = [c * (1 + 1e-2 * (i == place)) for i, c in enumerate(logarithm._THIRD)]
    monkeypatch.setattr(logarithm, "_THIRD", tuple(wrong))
    assert np.max(ulps(UNIFORMS[:: 1 << 6])) > 1
