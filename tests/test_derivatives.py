"""Every transformation of JAX on every implementation, against optax with the same key.

The transformations of one group share a program, for compiling is all the work.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

import perturbk
from checks import ON_A_CPU, assert_relatively_close, quick_jit
from perturbk.kernels.reference import perturbed_mean

A = np.array([0.3, -0.2, 0.4], np.float32)
B = np.array([[0.1, 0.2], [0.5, -0.3]], np.float32)


def one_hot(x):
    return jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1])


def ranks(x):
    return jnp.argsort(jnp.argsort(x, -1), -1)


CASES = {  # name: (fun, x, options)
    "argmax": (one_hot, A, dict(sigma=0.5)),
    "argmax_rows_normal": (one_hot, B, dict(sigma=0.4, noise=perturbk.Normal())),
    "ranking_no_baseline": (ranks, A, dict(sigma=0.5, use_baseline=False)),
    "top_k": (lambda x: jax.nn.one_hot(lax.top_k(x, 2)[1], x.size).sum(0), A, dict(sigma=0.5)),
    "top_k_indices": (lambda x: lax.top_k(x, 2)[1], A, dict(sigma=0.5)),
    "general": (
        lambda x: jnp.sort(jnp.sign(x)),
        A,
        dict(sigma=np.array([0.5, 0.7, 0.4], np.float32)),
    ),
    "mixed_tree": (
        lambda x: {"one": one_hot(x["a"]), "two": (jnp.sign(x["a"]), ranks(x["b"]))},
        {"a": A[:2], "b": B},
        dict(sigma=0.5),
    ),
}


def reference(fun, *, num_samples, sigma, noise=perturbk.Gumbel(), use_baseline=True):  # noqa: B008
    return lambda key, x: perturbed_mean(
        fun,
        key,
        x,
        num_samples=num_samples,
        sigma=sigma,
        noise=noise,
        use_baseline=use_baseline,
    )


MAKERS = {
    "optax": optax.perturbations.make_perturbed_fun,
    "reference": reference,
    **{
        name: functools.partial(perturbk.make_perturbed_fun, implementation=name)
        for name in ON_A_CPU
    },
}


def first_order(f, key, x, t, g):
    at_key = functools.partial(f, key)
    out, linear = jax.linearize(at_key, x)
    return {
        "value": out,
        "jvp": jax.jvp(at_key, (x,), (t,))[1],
        "vjp": jax.vjp(at_key, x)[1](g)[0],
        "linearize": linear(t),
        "grad": jax.grad(lambda x: jnp.sum(at_key(x) ** 2))(x),
        "jacfwd": jax.jacfwd(at_key)(x),
        "jacrev": jax.jacrev(at_key)(x),
    }


def higher_order(f, key, x, t, g):
    def loss(x):
        return jnp.vdot(g, f(key, x) ** 2)

    return {
        "forward_over_reverse": jax.jacfwd(jax.jacrev(loss))(x),
        "reverse_over_forward": jax.jacrev(jax.jacfwd(loss))(x),
        "forward_over_forward": jax.jacfwd(jax.jacfwd(loss))(x),
        "reverse_over_reverse": jax.jacrev(jax.jacrev(loss))(x),
        "third": jax.jvp(jax.hessian(loss), (x,), (t,))[1],
        "third_reverse": jax.grad(lambda x: jnp.vdot(t, jax.hessian(loss)(x) @ t))(x),
    }


def batched(f, key, x, t, g):
    keys = jax.random.split(key, 2)
    xs = jnp.stack([x, x + t, x - t])

    def loss(key, x):
        return jnp.vdot(g, f(key, x))

    def curvature(key, x):
        return jax.hessian(loss, 1)(key, x) @ t

    return {
        "keys": jax.vmap(f, (0, None))(keys, x),
        "xs": jax.vmap(f, (None, 0))(key, xs),
        "both": jax.vmap(f)(keys, xs[:2]),
        "outer": jax.vmap(jax.vmap(f, (None, 0)), (0, None))(keys, xs),
        "vmap_of_grad": jax.vmap(jax.grad(loss, 1))(keys, xs[:2]),
        "vmap_of_grad_xs": jax.vmap(jax.grad(loss, 1), (None, 0))(key, xs),
        "grad_of_vmap": jax.grad(lambda xs: jnp.sum(jax.vmap(loss)(keys, xs) ** 2))(xs[:2]),
        "vmap_of_hessian": jax.vmap(curvature)(keys, xs[:2]),
        "axis_1": jax.vmap(f, (None, 1), 1)(key, xs.T),
    }


GROUPS = {f.__name__: f for f in (first_order, higher_order, batched)}


@functools.cache
def results(group, case, maker):
    """Of all transformations in a group, on vectors: trees are flattened at both ends."""
    fun, x, options = CASES[case]
    f = MAKERS[maker](fun, num_samples=6, **options)
    flat, unravel = ravel_pytree(x)
    rng = np.random.default_rng(0)
    t = rng.normal(size=flat.shape).astype(np.float32)

    def of_vector(key, v):
        return ravel_pytree(f(key, unravel(v)))[0]

    key = jax.random.key(11)
    size = jax.eval_shape(of_vector, key, flat).size
    g = rng.normal(size=size).astype(np.float32)
    return quick_jit(functools.partial(GROUPS[group], of_vector))(key, flat, t, g)


def check(group, case, maker):
    found, expected = results(group, case, maker), results(group, case, "optax")
    for name in expected:
        try:
            assert_relatively_close(found[name], expected[name])
        except AssertionError as error:
            error.add_note(f"in {name}")
            raise


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", GROUPS)
def test_all_transformations(group, case, implementation):
    check(group, case, implementation)


@pytest.mark.parametrize("group", GROUPS)
def test_reference_is_optax(group):
    check(group, "mixed_tree", "reference")
