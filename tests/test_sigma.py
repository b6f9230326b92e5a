"""sigma: traced, array-valued, and differentiated, where optax is biased."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import oracles
import perturbk
from checks import assert_relatively_close, quick_jit
from perturbk.kernels.reference import perturbed_mean

X = np.array([0.4, -0.1, 0.9], np.float32)
KEY = jax.random.key(7)


def one_hot(x):
    return jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1])


class Laplace:
    """A noise that no kernel knows."""

    def sample(self, key, shape, dtype):
        return jax.random.laplace(key, shape, dtype)

    def log_prob(self, z):
        return -jnp.abs(z)


def estimators(fun, noise, num_samples, implementation):
    """Ours and the reference as functions of (x, sigma)."""

    def ours(x, sigma):
        return perturbk.make_perturbed_fun(
            fun, num_samples, sigma, noise, implementation=implementation
        )(KEY, x)

    def reference(x, sigma):
        return perturbed_mean(fun, KEY, x, num_samples=num_samples, sigma=sigma, noise=noise)

    return ours, reference


def derivatives(f, x, sigma):
    def loss(x, sigma):
        return jnp.sum(f(x, sigma) ** 2)

    return {
        "value": f(x, sigma),
        "forward": jax.jacfwd(f, 1)(x, sigma),
        "reverse": jax.jacrev(f, 1)(x, sigma),
        "second": jax.hessian(loss, 1)(x, sigma),
        "mixed": jax.jacfwd(jax.grad(loss, 1), 0)(x, sigma),
        "mixed_other_way": jax.jacrev(jax.grad(loss, 0), 1)(x, sigma),
    }


CASES = {
    "argmax": (one_hot, perturbk.Gumbel()),
    "ranking_normal": (lambda x: jnp.argsort(jnp.argsort(x)), perturbk.Normal()),
    "general": (jnp.cumsum, perturbk.Gumbel()),
}


SCALAR, ARRAY = np.float32(0.6), np.float32([0.5, 0.7, 0.4])


@functools.cache
def of_reference(case, scalar):
    _, reference = estimators(*CASES[case], 6, None)
    sigma = SCALAR if scalar else ARRAY
    return quick_jit(functools.partial(derivatives, reference))(X, sigma)


@pytest.mark.parametrize(
    ("case", "scalar"),
    [("argmax", True), ("argmax", False), ("ranking_normal", True), ("general", False)],
)
def test_derivatives_are_those_of_the_reference(case, scalar, implementation):
    ours, _ = estimators(*CASES[case], 6, implementation)
    found = quick_jit(functools.partial(derivatives, ours))(X, SCALAR if scalar else ARRAY)
    assert_relatively_close(found, of_reference(case, scalar))


def test_derivatives_with_an_unknown_noise():
    ours, reference = estimators(one_hot, Laplace(), 6, "xla")
    found, expected = (
        quick_jit(functools.partial(derivatives, f))(X, SCALAR) for f in (ours, reference)
    )
    assert_relatively_close(found, expected)


def test_derivative_is_unbiased_and_that_of_optax_is_not(implementation):
    sigma, num_samples = 0.5, 20_000
    ours, _ = estimators(one_hot, perturbk.Gumbel(), num_samples, implementation)

    def theirs(x, sigma):
        return optax.perturbations.make_perturbed_fun(one_hot, num_samples, sigma)(KEY, x)

    terms = oracles.sample_terms(oracles.argmax_one_hot, "Gumbel", KEY, X, num_samples, sigma)[2]
    exact = oracles.softmax_in_sigma(X, sigma)
    worst = [
        np.max(np.abs(oracles.z_score(jax.jit(jax.jacfwd(f, 1))(X, sigma), exact, terms)))
        for f in (ours, theirs)
    ]
    assert worst[0] < 6 < worst[1]


def test_an_array_broadcasts_to_every_leaf(implementation):
    x = {"a": np.stack([X, -X]), "b": X}
    sigma = np.float32([0.5, 0.7, 0.4])
    options = dict(num_samples=20, implementation=implementation)
    tree = perturbk.make_perturbed_fun(lambda x: jax.tree.map(one_hot, x), sigma=sigma, **options)
    rows = perturbk.make_perturbed_fun(
        lambda x: jax.tree.map(one_hot, x),
        sigma=np.stack([sigma, sigma]),
        **options,
    )
    found = tree(KEY, x)
    np.testing.assert_array_equal(found["a"], rows(KEY, {"a": x["a"], "b": x["a"]})["a"])
    assert jnp.max(jnp.abs(found["a"].sum(-1) - 1)) < 1e-6


def test_vmap_over_sigma(implementation):
    ours, reference = estimators(one_hot, perturbk.Gumbel(), 20, implementation)
    sigmas = np.float32([0.2, 0.5, 2.0])
    found, expected = (
        jax.jit(jax.vmap(jax.value_and_grad(lambda s, f=f: f(X, s)[0])))(sigmas)
        for f in (ours, reference)
    )
    assert_relatively_close(found, expected)


def test_integer_and_numpy_values_are_floats(implementation):
    values = [
        perturbk.make_perturbed_fun(one_hot, 20, sigma, implementation=implementation)(KEY, X)
        for sigma in (1, 1.0, np.float64(1), np.ones(()), jnp.int32(1))
    ]
    for value in values:
        np.testing.assert_array_equal(value, values[0])
