"""JAX's settings and contexts: none of them is an obstacle, or changes a number."""

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax, nn

import perturbk
from checks import assert_relatively_close, quick_jit
from perturbk.perturbed import make_perturbed_fun

X = np.array([-0.6, 1.9, -0.2, 1.1, -1.0], np.float32)
KEY = jax.random.key(3)


def winner(x):
    return nn.one_hot(jnp.argmax(x), x.size)


@pytest.mark.parametrize("noise", [perturbk.Gumbel(), optax.perturbations.Normal()])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_strict_promotion_is_no_obstacle(impl, noise):
    def fun(x):
        return winner(x), jnp.argsort(jnp.argsort(x)), x > 0, x.astype(jnp.bfloat16), jnp.sort(x)

    f = make_perturbed_fun(fun, 4, noise=noise)

    def results(x):
        out, vjp = jax.vjp(lambda x: f(jax.random.key(0, impl=impl), x), x)
        return out, vjp(out)

    expected = quick_jit(results)(X)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert_relatively_close(quick_jit(results)(X), expected)


def test_without_jit_the_numbers_are_the_same():
    f = make_perturbed_fun(lambda x: (winner(x), x * 2), 4, 0.5)

    def results(x):
        return jax.value_and_grad(lambda x: f(KEY, x)[0] @ X)(x), f(KEY, x)[1]

    expected = results(X)
    with jax.disable_jit():
        assert_relatively_close(results(X), expected)


def test_no_tracer_leaks():
    def loss(w, x):
        f = make_perturbed_fun(lambda x: (winner(x * w), winner(x), nn.relu(x) * w), 4)
        return sum(y.sum() for y in f(KEY, x))

    with jax.checking_leaks():
        jax.jit(jax.grad(loss, (0, 1)))(X, X)
        jax.vmap(jax.grad(loss), (0, None))(jnp.stack([X, X]), X)


def test_axes_with_names():
    def results(make):
        f = make(lambda x: (winner(x), x + lax.psum(x, "i") * lax.axis_index("i")), 4)
        return jax.vmap(lambda x: f(KEY, x), axis_name="i")(np.stack([X, -X]))

    expected = results(optax.perturbations.make_perturbed_fun)
    assert_relatively_close(results(make_perturbed_fun), expected)


def test_threads_do_not_disturb_each_other():
    def call(i):
        return make_perturbed_fun(lambda x: nn.relu(x) * i, 4)(KEY, X)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(call, [1, 2, 3, 4] * 3))
    assert_relatively_close(found, [call(i) for i in [1, 2, 3, 4] * 3])
