"""The kernels' own logarithm and inverse error function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbk.kernels import functions

UNIFORMS = np.arange(1, 1 << 23, dtype=np.float32) / np.float32(1 << 23)  # all but 0
POSITIVE = {
    "uniforms": UNIFORMS,
    "exponentials": -np.log(UNIFORMS.astype(np.float64)).astype(np.float32),
    "all exponents": np.random.default_rng(0)
    .integers(0x00800000, 0x7F800000, 1 << 20, dtype=np.int32)
    .view(np.float32),
}
BOTH_SIDES = np.concatenate([-UNIFORMS[::-1], [0], UNIFORMS]).astype(np.float32)
SOME = np.concatenate([UNIFORMS[:: 1 << 6], UNIFORMS[-(1 << 18) :: 1 << 4]])
TABLES = ("_THIRD", "_CENTRAL", "_TAIL")
CENTRAL, TAIL = functions._CENTRAL, functions._TAIL


def exact_fma(a, b, c):
    return jnp.asarray((np.float64(a) * np.float64(b) + np.float64(c)).astype(np.float32))


def rounded(a, b, c):
    return a * b + c


def ulps(found, exact):
    ulp = np.spacing(np.maximum(np.abs(exact), np.finfo(np.float32).tiny).astype(np.float32))
    return np.abs(np.float64(found) - exact) / ulp


def log_ulps(values, fma=exact_fma):
    return ulps(functions.log(jnp.asarray(values), fma), np.log(values.astype(np.float64)))


def erf_inv_ulps(x, fma=exact_fma):
    """Against the polynomials of `lax.erf_inv` in float64, with the square rounded as there."""
    w = -np.log1p(-np.float64(x * x))
    central = w < 5
    t = np.where(central, w - 2.5, np.sqrt(w) - 3)
    exact = x * sum(
        np.where(central, a, b) * t**n for n, (a, b) in enumerate(zip(CENTRAL, TAIL, strict=True))
    )
    return ulps(functions.erf_inv(jnp.asarray(x), fma), exact)


@pytest.mark.parametrize("values", POSITIVE)
def test_logarithm_within_one_ulp(values):
    assert np.max(log_ulps(POSITIVE[values])) < 1


def test_logarithm_of_one_is_zero():
    assert functions.log(jnp.float32(1), exact_fma) == 0


def test_inverse_error_function_within_a_few_ulps():
    assert np.max(erf_inv_ulps(BOTH_SIDES)) < 4


def test_inverse_error_function_is_that_of_jax():
    """But for the rounding of the square, which XLA on a CPU leaves out."""
    found = functions.erf_inv(jnp.asarray(UNIFORMS), exact_fma)
    np.testing.assert_allclose(found, jax.lax.erf_inv(UNIFORMS), rtol=1e-6, atol=2e-5)


def test_products_that_are_rounded_are_caught():
    assert np.max(log_ulps(UNIFORMS, rounded)) > 1


@pytest.mark.parametrize(
    "table, place", [(name, i) for name in TABLES for i in range(len(getattr(functions, name)))]
)
def test_a_wrong_coefficient_is_caught(table, place, monkeypatch):
    wrong = list(getattr(functions, table))
    wrong[place] += 0.01 if table == "_THIRD" else 1e-4
    monkeypatch.setattr(functions, table, tuple(wrong))
    if table == "_THIRD":
        assert np.max(log_ulps(SOME)) > 1
    else:
        assert np.max(erf_inv_ulps(SOME)) > 4
