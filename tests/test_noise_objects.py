"""Noise objects: optax's own, a user's, and those that only look like a known one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import perturbk
from checks import assert_relatively_close, assert_rounding_apart, quick_jit, tuned

KEY = jax.random.key(4)
X = np.array([0.5, -0.2, 0.1], np.float32)


def one_hot(x):
    return jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1])


class Laplace:
    def sample(self, key, shape, dtype):
        return jax.random.laplace(key, shape, dtype)

    def log_prob(self, z):
        return -jnp.abs(z)


class Wide(perturbk.Gumbel):
    def sample(self, key, sample_shape=(), dtype=float):
        return 2 * super().sample(key, sample_shape, dtype)


class Tilted(optax.perturbations.Normal):
    def log_prob(self, inputs):
        return -jnp.cosh(inputs)


def derivatives(make, noise):
    def f(x):
        return make(lambda x: (one_hot(x), jnp.sort(x)), 9, 0.5, noise)(KEY, x)

    def loss(x):
        return sum(jnp.sum(leaf**2) for leaf in f(x))

    return quick_jit(lambda x: (f(x), jax.grad(loss)(x), jax.jacfwd(f)(x), jax.hessian(loss)(x)))(X)


def assert_optax(noise):
    found = derivatives(perturbk.make_perturbed_fun, noise)
    expected = derivatives(optax.perturbations.make_perturbed_fun, noise)
    assert_relatively_close(found, expected)


def kernel(noise):
    return perturbk.explain(perturbk.make_perturbed_fun(one_hot, noise=noise), X).leaves[0].kernel


@pytest.mark.parametrize("library", [perturbk, optax.perturbations])
def test_known_noises_have_kernels(library):
    assert kernel(library.Gumbel()) == "argmax_gumbel"
    assert kernel(library.Normal()) == "argmax_normal"


@pytest.mark.parametrize("noise", [Laplace(), Wide(), Tilted()], ids=lambda n: type(n).__name__)
def test_unknown_noises_are_asked(noise):
    assert kernel(noise) is None
    assert_optax(noise)


def test_methods_changed_on_an_instance_are_used():
    noise = perturbk.Gumbel()
    noise.sample = lambda key, shape, dtype: 2 * jax.random.gumbel(key, shape, dtype)
    assert_optax(noise)


def test_classes_of_the_same_name_are_not_mistaken():
    class Gumbel(Laplace):
        pass

    assert kernel(Gumbel()) is None


def test_unknown_noise_in_several_blocks():
    expected = derivatives(optax.perturbations.make_perturbed_fun, Laplace())
    with tuned(general_block=12, residual_bytes=0):
        assert_relatively_close(derivatives(perturbk.make_perturbed_fun, Laplace()), expected)


def test_noise_with_a_traced_parameter():
    class Scaled:
        def __init__(self, scale):
            self.scale = scale

        def sample(self, key, shape, dtype):
            return self.scale * jax.random.normal(key, shape, dtype)

        def log_prob(self, z):
            return -0.5 * (z / self.scale) ** 2

    found, expected = (
        jax.jit(jax.vmap(lambda s, make=make: make(one_hot, 9, 0.5, Scaled(s))(KEY, X)))(
            np.float32([0.5, 2])
        )
        for make in (perturbk.make_perturbed_fun, optax.perturbations.make_perturbed_fun)
    )
    assert_rounding_apart(found, expected)


@pytest.mark.parametrize("noise", ["Gumbel", "Normal"])
def test_our_noises_are_optax_noises(noise):
    ours, theirs = (getattr(library, noise)() for library in (perturbk, optax.perturbations))
    assert isinstance(ours, perturbk.Noise) and isinstance(theirs, perturbk.Noise)
    for args in ((), ((2, 3),), ((2,), jnp.bfloat16)):
        sample = ours.sample(KEY, *args)
        assert sample.dtype == theirs.sample(KEY, *args).dtype
        np.testing.assert_array_equal(sample, theirs.sample(KEY, *args))
    np.testing.assert_array_equal(ours.log_prob(X), theirs.log_prob(X))
