"""The printed numbers of optax's perturbations tutorial, on every implementation."""

import jax
import jax.numpy as jnp
import numpy as np

import perturbk

PRINTED = 1e-6  # the tutorial prints seven significant digits


def argmax_one_hot(x, axis=-1):
    return jax.nn.one_hot(jnp.argmax(x, axis=axis), x.shape[axis])


def ranking(x):
    return jnp.argsort(jnp.argsort(x))


def test_argmax(implementation):
    x = jnp.array([-0.6, 1.9, -0.2, 1.1, -1.0])
    target = (jnp.arange(5) + 2) / 20
    f = perturbk.make_perturbed_fun(
        argmax_one_hot, num_samples=100, sigma=0.5, implementation=implementation
    )
    keys = jax.random.split(jax.random.PRNGKey(1), 2)

    def loss(x, key):
        return jnp.sum((target - f(key, x)) ** 2)

    np.testing.assert_allclose(f(keys[0], x), [0.02, 0.87, 0.01, 0.09999999, 0.0], PRINTED)
    value, gradient = jax.jit(jax.value_and_grad(loss))(x, keys[1])
    np.testing.assert_allclose(value, 0.7062, PRINTED)
    expected = [-0.09853157, 0.10874727, -0.11743014, -0.17878106, 0.16792142]
    np.testing.assert_allclose(gradient, expected, PRINTED)


def test_ranking(implementation):
    key = jax.random.PRNGKey(0)
    x = jax.random.normal(key, (6,))
    f = perturbk.make_perturbed_fun(
        ranking, num_samples=100, sigma=0.2, implementation=implementation
    )
    keys = jax.random.split(key, 2)

    def loss(x, key):
        return jnp.sum((ranking(jnp.arange(6)) - f(key, x)) ** 2)

    np.testing.assert_allclose(f(keys[0], x), [4.11, 4.89, 1.17, 2.02, 2.76, 0.05], PRINTED)
    value, gradient = jax.jit(jax.value_and_grad(loss))(x, keys[1])
    np.testing.assert_allclose(value, 59.774796, PRINTED)
    expected = [-1.4866238, -1.7248265, 2.7977767, -0.13454585, -1.9688786, -1.8026488]
    np.testing.assert_allclose(gradient, expected, PRINTED)


def test_tree(implementation):
    x = (
        jnp.array((0.1, 0.4, 0.5)),
        {"k1": jnp.array((0.1, 0.2)), "k2": jnp.array((0.1, 0.1))},
        jnp.array((0.4, 0.3, 0.2, 0.1)),
    )
    f = perturbk.make_perturbed_fun(
        lambda x: jax.tree.map(argmax_one_hot, x),
        num_samples=100,
        sigma=0.2,
        implementation=implementation,
    )
    key = jax.random.PRNGKey(0)

    def loss(x):
        pairs = jax.tree.map(lambda x, y: (argmax_one_hot(x) - y) ** 2 / 4, x, f(key, x))
        return sum(map(jnp.sum, jax.tree.leaves(pairs)))

    values = (
        [0.07, 0.35, 0.58],
        {"k1": [0.4, 0.6], "k2": [0.5, 0.5]},
        [0.59, 0.24, 0.09, 0.08],
    )
    gradients = (
        [0.27816886, 0.34292352, -0.5273831],
        {"k1": [0.30987588, -0.39455885], "k2": [-0.35475504, 1.0202795]},
        [0.0908477, 0.21252292, 0.23311302, 0.3052454],
    )
    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    for actual, expected in ((jax.jit(f)(key, x), values), (gradient, gradients)):
        flat = [jnp.concatenate(jax.tree.leaves(actual)), np.hstack(jax.tree.leaves(expected))]
        np.testing.assert_allclose(*flat, PRINTED, atol=PRINTED)  # sums that cancel
    np.testing.assert_allclose(value, 0.341, atol=0.0005)
