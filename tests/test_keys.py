"""Keys and settings of `jax.random`: whatever draws, the numbers are optax's."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import perturbk
from checks import assert_bit_equal, assert_relatively_close, assert_rounding_apart, quick

X = np.array([0.5, -0.2, 0.1, 0.9], np.float32)


def one_hot(x):
    return jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1])


def results(make, key, **options):
    f = make(one_hot, 50, 0.5, **options)
    return quick(lambda key: (f(key, X), jax.jacrev(f, 1)(key, X)), key)


def assert_optax(key, **options):
    found = results(perturbk.make_perturbed_fun, key, **options)
    expected = results(optax.perturbations.make_perturbed_fun, key, **options)
    assert_rounding_apart(found[0], expected[0])
    assert_relatively_close(found[1], expected[1])


@contextlib.contextmanager
def setting(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def test_legacy_and_typed_keys_are_the_same(implementation):
    f = perturbk.make_perturbed_fun(one_hot, 50, 0.5, implementation=implementation)
    expected = f(jax.random.key(3), X)
    assert_bit_equal(f(jax.random.PRNGKey(3), X), expected)
    assert_bit_equal(f(np.array([0, 3], np.uint32), X), expected)
    assert_bit_equal(jax.jit(f)(jax.random.PRNGKey(3), X), expected)


def test_vmap_over_legacy_and_typed_keys(implementation):
    f = perturbk.make_perturbed_fun(one_hot, 50, 0.5, implementation=implementation)
    keys = jax.random.split(jax.random.key(3), 3)
    expected = np.stack([f(key, X) for key in keys])
    over_keys = jax.jit(jax.vmap(f, (0, None)))
    assert_bit_equal(over_keys(keys, X), expected)
    assert_bit_equal(over_keys(jax.random.key_data(keys), X), expected)


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_other_generators(generator):
    key = jax.random.key(3, impl=generator)
    assert_optax(key)
    keys = jax.random.split(key, 2)
    found, expected = (
        quick(jax.vmap(make(one_hot, 50, 0.5), (0, None)), keys, X)
        for make in (perturbk.make_perturbed_fun, optax.perturbations.make_perturbed_fun)
    )
    assert_rounding_apart(found, expected)


def test_legacy_keys_of_another_default_generator():
    with jax.default_prng_impl("rbg"):
        assert_optax(jax.random.PRNGKey(3))
        with pytest.raises(ValueError, match=r"shape \(4,\).*'rbg'.*got shape \(2,\)"):
            perturbk.make_perturbed_fun(one_hot)(np.zeros(2, np.uint32), X)


def test_unpartitionable_threefry():
    key = jax.random.key(3)
    before = perturbk.make_perturbed_fun(one_hot, 50, 0.5)(key, X)
    with setting("jax_threefry_partitionable", False):
        assert_optax(key)
        assert np.any(perturbk.make_perturbed_fun(one_hot, 50, 0.5)(key, X) != before)
    assert_bit_equal(perturbk.make_perturbed_fun(one_hot, 50, 0.5)(key, X), before)


def test_high_dynamic_range_gumbel():
    key = jax.random.key(3)
    with setting("jax_high_dynamic_range_gumbel", True):
        assert_optax(key)
        leaf = perturbk.explain(perturbk.make_perturbed_fun(one_hot), X).leaves[0]
        assert leaf.kernel is None and "jax_high_dynamic_range_gumbel" in leaf.reason
        normal = perturbk.make_perturbed_fun(one_hot, noise=perturbk.Normal())
        assert perturbk.explain(normal, X).leaves[0].kernel == "argmax_normal"


def test_settings_are_read_when_called():
    key = jax.random.key(3)
    f = jax.jit(perturbk.make_perturbed_fun(one_hot, 50, 0.5))
    g = jax.jit(optax.perturbations.make_perturbed_fun(one_hot, 50, 0.5))
    for partitionable in (True, False, True):
        with setting("jax_threefry_partitionable", partitionable):
            assert_rounding_apart(f(key, X), g(key, X))
