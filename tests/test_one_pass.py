"""Value and tangent as one primitive, which falls apart where only one of them is known or used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import perturbk
from checks import assert_bit_equal, assert_relatively_close, normal, quick, quick_jit, words_of
from perturbk.kernels import pallas_ops, tpu_ops, xla, xla_score
from perturbk.kernels.streams import STREAMS

KEY = jax.random.key(3)
X, T = normal(0, 3, 5), normal(9, 3, 5)
PAIR = "perturbk_samples_and_dot"


def _smooth(library):
    f = library.make_perturbed_fun(perturbk.argmax_one_hot, 100, 0.5)
    return lambda x: jnp.sum(T * f(KEY, x) ** 2)


def _jvp(h):
    return lambda x: jax.jvp(h, (x,), (T,))[1]


def _scanned(h, of=lambda step: step):
    def step(x, _):
        return x + 0.1 * h(x) * x, None

    return jax.grad(lambda x: jnp.sum(lax.scan(of(step), x, None, length=3)[0]))


TRANSFORMATIONS = {
    "jvp": _jvp,
    "grad_of_jvp": lambda h: jax.grad(_jvp(h)),
    "jvp_of_grad": lambda h: lambda x: jax.jvp(jax.grad(h), (x,), (T,))[1],
    "linearize": lambda h: lambda x: jax.linearize(h, x)[1](T),
    "linear_transpose": lambda h: (
        lambda x: jax.linear_transpose(lambda t: jax.jvp(h, (x,), (t,))[1], x)(1.0)
    ),
    "remat": lambda h: jax.grad(jax.checkpoint(h)),
    "jvp_of_remat": lambda h: lambda x: jax.jvp(jax.grad(jax.checkpoint(h)), (x,), (T,))[1],
    "remat_of_jvp": lambda h: jax.grad(jax.checkpoint(_jvp(h))),
    "scan": _scanned,
    "scan_of_jvp": lambda h: _scanned(_jvp(h)),
    "scan_of_remat": lambda h: _scanned(h, jax.checkpoint),
    "scan_of_remat_of_jvp": lambda h: _scanned(_jvp(h), jax.checkpoint),
    "cond": lambda h: jax.grad(lambda x: lax.cond(x[0, 0] < 9, h, jnp.sum, x)),
    "vmap": lambda h: lambda x: jax.vmap(jax.grad(h))(jnp.stack([x, 2 * x])),
    "vmap_of_jvp": lambda h: lambda x: jax.vmap(_jvp(h))(jnp.stack([x, 2 * x])),
    "jacfwd": jax.jacfwd,
    "jacfwd_twice": lambda h: jax.jacfwd(jax.jacfwd(h)),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations(name):
    transformed = TRANSFORMATIONS[name]
    expected = quick_jit(transformed(_smooth(optax.perturbations)))(X)
    assert_relatively_close(quick_jit(transformed(_smooth(perturbk)))(X), expected, 2e-5)


@pytest.mark.parametrize(
    ("transformed", "count"),
    [(_jvp, 1), (lambda h: lambda x: jax.jvp(h, (x,), (T,)), 1), (jax.grad, 0), (jax.jacfwd, 0)],
    ids=["tangent", "value_and_tangent", "grad", "jacfwd"],
)
def test_where_the_pair_is(transformed, count):
    """In forward mode. Reverse mode has its parts, and a Jacobian the samples once."""
    jaxpr = str(jax.make_jaxpr(transformed(_smooth(perturbk)))(X))
    assert jaxpr.count(PAIR) == count
    if count == 0:
        assert jaxpr.count("perturbk_samples[") == 1


def test_half_a_pair_is_left_where_the_other_is_not_used():
    from jax.interpreters import partial_eval as pe

    value_and_tangent = jax.make_jaxpr(lambda x: jax.jvp(_smooth(perturbk), (x,), (T,)))(X)
    for used, kept in (([True, False], "perturbk_samples["), ([True, True], PAIR)):
        jaxpr, _ = pe.dce_jaxpr(value_and_tangent.jaxpr, used)
        assert kept in str(jaxpr) and (PAIR in str(jaxpr)) == (kept == PAIR)


def test_only_sigma():
    """With respect to sigma alone there is no pair, and the result is that of both."""

    def smooth(sigma, x):
        return jnp.sum(T * perturbk.make_perturbed_fun(perturbk.ranking, 100, sigma)(KEY, x))

    alone = quick(lambda s: jax.jvp(lambda s: smooth(s, X), (s,), (1.0,))[1], 0.5)
    both = quick(lambda s, x: jax.jvp(smooth, (s, x), (1.0, jnp.zeros_like(x)))[1], 0.5, X)
    assert_relatively_close(alone, both, 1e-6)
    assert PAIR not in str(jax.make_jaxpr(jax.grad(smooth))(0.5, X))


def _check(kernel, op, noise, d, inner, shape, num_samples, rng="jax"):
    """A kernel of both, interpreted, gives what XLA gives one by one.

    shape: groups, shared vectors, rows.
    """
    stream = STREAMS[rng](d if inner == 1 else inner)
    groups, shared, rows = shape
    words = words_of(stream, jax.random.key(7), groups, num_samples)
    x, t = normal(1, *shape, d), normal(2, groups, shared, rows * d)
    sigma = np.full((1, 1, 1, 1), 0.7, np.float32)
    of_op = dict(op=op, noise=noise, inner=inner)
    codes, dot = quick(kernel, words, x, sigma, t, platform="cpu", **of_op)
    assert_bit_equal(codes, quick(xla.samples, words, x, sigma, stream=stream, **of_op))
    of_score = dict(order=1, power=0, noise=noise, stream=stream)
    assert_relatively_close(dot, quick(xla_score.score_dot, words, t, **of_score), 3e-6)


@pytest.mark.parametrize(
    ("op", "rng", "noise", "d", "inner", "shape"),
    [
        ("argmax", "jax", "gumbel", 101, 1, (2, 2, 1)),
        ("argmax", "jax", "gumbel", 5, 1, (2, 1, 3)),
        ("argmax", "jax", "normal", 5, 2, (1, 2, 2)),
        ("argmax", "philox", "gumbel", 101, 1, (1, 1, 2)),
        ("argmax", "philox", "gumbel", 37, 3, (1, 1, 6)),
        ("argmax", "philox", "normal", 5, 1, (1, 2, 2)),
        ("top_k_3", "jax", "gumbel", 101, 1, (2, 2, 1)),
        ("top_k_indices_7", "philox", "gumbel", 101, 1, (1, 1, 2)),
        ("top_k_2", "philox", "normal", 5, 1, (1, 2, 2)),
        ("ranking", "jax", "gumbel", 35, 1, (1, 2, 1)),
        ("ranking", "philox", "normal", 5, 1, (1, 1, 3)),
    ],
)
def test_the_kernels_of_a_gpu(op, rng, noise, d, inner, shape):
    stream = STREAMS[rng](d if inner == 1 else inner)
    kernel = functools.partial(pallas_ops.samples_and_dot, stream=stream)
    _check(kernel, op, noise, d, inner, shape, 300, rng)


def test_the_longest_rankings_on_a_gpu_take_two_passes():
    rows, t = jnp.zeros((1, 1, 1, 4097)), jnp.zeros((1, 1, 4097))
    words = STREAMS["jax"](4097).words(KEY, 3, 0)[None]
    which = dict(op="ranking", noise="gumbel", inner=1, platform="cpu")
    assert pallas_ops.samples_and_dot(words, rows, jnp.ones((1, 1, 1, 1)), t, **which) is None


@pytest.mark.parametrize("op", ["argmax", "top_k_3", "ranking"])
@pytest.mark.parametrize(
    ("noise", "d", "inner", "shape", "num_samples"),
    [("gumbel", 37, 3, (2, 2, 3), 300), ("normal", 9, 1, (1, 1, 2), 8200)],
)
def test_the_kernels_of_a_tpu(op, noise, d, inner, shape, num_samples):
    _check(tpu_ops.samples_and_dot, op, noise, d, inner, shape, num_samples)


def test_the_kernel_of_a_tpu_in_segments():
    _check(tpu_ops.samples_and_dot, "argmax", "gumbel", 600, 1, (1, 1, 1), 50)
