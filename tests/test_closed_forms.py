"""Values and gradients against closed forms, within six standard errors; a wrong score is not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import oracles
import perturbk
from checks import assert_relatively_close, fresh_caches, quick
from perturbk.kernels.noise import NOISES

X = np.array([0.4, -0.1, 0.9, 0.0, 0.6], np.float32)
SIGMA, NUM_SAMPLES = 0.5, 20_000
KEY = jax.random.key(123)

CLOSED_FORMS = {  # (op, noise): fun, the same in numpy, expectation, its Jacobian
    ("argmax", "Gumbel"): (
        lambda x: jax.nn.one_hot(jnp.argmax(x), x.size),
        oracles.argmax_one_hot,
        oracles.softmax(X, SIGMA),
        oracles.softmax_jacobian(X, SIGMA),
    ),
    **{
        (f"top_2{'_indices' * indices}", "Gumbel"): (
            fun,
            functools.partial(oracles.top_k, k=2, indices=indices),
            oracles.expected_top_k(X, 2, SIGMA, indices=indices),
            oracles.expected_top_k_jacobian(X, 2, SIGMA, indices=indices),
        )
        for fun, indices in (
            (lambda x: jax.nn.one_hot(lax.top_k(x, 2)[1], x.size).sum(-2), False),
            (lambda x: lax.top_k(x, 2)[1], True),
        )
    },
    **{
        ("ranking", noise): (
            lambda x: jnp.argsort(jnp.argsort(x)),
            oracles.ranks,
            oracles.expected_ranks(noise, X, SIGMA),
            oracles.expected_ranks_jacobian(noise, X, SIGMA),
        )
        for noise in ("Gumbel", "Normal")
    },
}


def perturbed(op, noise, implementation):
    return perturbk.make_perturbed_fun(
        CLOSED_FORMS[op, noise][0],
        NUM_SAMPLES,
        SIGMA,
        getattr(perturbk, noise)(),
        implementation=implementation,
    )


def z_scores(op, noise, implementation):
    """Of the value and of the Jacobian."""
    _, in_numpy, expected, jacobian = CLOSED_FORMS[op, noise]
    f = perturbed(op, noise, implementation)
    found = jax.jit(lambda x: (f(KEY, x), jax.jacrev(f, 1)(KEY, x)))(X)
    terms = oracles.sample_terms(in_numpy, noise, KEY, X, NUM_SAMPLES, SIGMA)
    return (
        oracles.z_score(found[0], expected, terms[0]),
        oracles.z_score(found[1], jacobian, terms[1]),
    )


@pytest.mark.parametrize(("op", "noise"), CLOSED_FORMS)
def test_within_six_standard_errors(op, noise, implementation):
    for z in z_scores(op, noise, implementation):
        assert np.isfinite(z).all() and np.max(np.abs(z)) < 6


@pytest.mark.parametrize(("op", "noise"), CLOSED_FORMS)
def test_estimate_is_that_of_numpy(op, noise, implementation):
    f = perturbed(op, noise, implementation)
    found = quick(lambda x: (f(KEY, x), jax.jacfwd(f, 1)(KEY, x)), X)
    terms = oracles.sample_terms(CLOSED_FORMS[op, noise][1], noise, KEY, X, NUM_SAMPLES, SIGMA)
    expected = [np.mean(t, 0, dtype=np.float64).astype(np.float32) for t in terms[:2]]
    assert_relatively_close(list(found), expected)


WRONG_SCORES = {
    "gumbel": lambda math: lambda bits, order, power: math.variate(bits) - np.float32(0.5772),
    "normal": lambda math: lambda bits, order, power: math.variate(bits) * np.float32(1.1),
}


@pytest.mark.parametrize(("op", "noise"), [("argmax", "Gumbel"), ("ranking", "Normal")])
def test_a_wrong_score_is_caught(op, noise, implementation, monkeypatch):
    math = NOISES[noise.lower()]()
    moment = WRONG_SCORES[noise.lower()](math)
    wrong = dataclasses.replace(math, moment=moment, quick_moments=None)
    monkeypatch.setitem(NOISES, noise.lower(), lambda machine: wrong)
    with fresh_caches():
        value, jacobian = z_scores(op, noise, implementation)
    assert np.max(np.abs(value)) < 6  # the value does not use it
    assert np.max(np.abs(jacobian)) > 6
