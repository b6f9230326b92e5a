"""Values in order: `jnp.sort` and its kin, by every implementation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

import oracles
import perturbk
from checks import (
    assert_bit_equal,
    assert_relatively_close,
    normal,
    quick,
    quick_jit,
    tuned,
    words_of,
)
from perturbk.implementations import check, choose
from perturbk.kernels import pallas_ops, sorting, tpu_ops, tpu_sort, xla, xla_score
from perturbk.kernels.sorting import SORTS
from perturbk.kernels.streams import STREAMS, THREEFRY
from test_tpu_ranking import Ref

KEY = jax.random.key(4)
INF, NAN = np.inf, np.nan
SPELLED = {
    "sort": jnp.sort,
    "sort_descending": lambda x, axis=-1: -jnp.sort(-x, axis),
    "sort_nan_first": lambda x, axis=-1: jnp.sort(x, axis, descending=True),
}


@pytest.mark.parametrize("op", SORTS)
@pytest.mark.parametrize("d", [1, 2, 5, 70])
def test_order_and_values(op, d):
    y = np.random.default_rng(d).choice(
        [INF, -INF, NAN, -NAN, 0.0, -0.0, 1.5, -2e-30, 3e38], (3, d, 9)
    )
    y = jnp.asarray(y, jnp.float32)
    expected = SPELLED[op](y, axis=1)
    ways = sorting._by_network, sorting._by_xla
    found = quick(lambda y: [by(SORTS[op].key(y)) for by in ways], y)
    assert_bit_equal(found[0], found[1])
    np.testing.assert_array_equal(SORTS[op].value(found[0]), expected)


@pytest.mark.parametrize("d", [1, 16, 20, 70])
def test_the_network_of_a_tpu(d):
    shape = (tpu_sort.height(d), 8, 128)
    y = np.random.default_rng(d).choice([INF, NAN, *range(9)], shape)
    keys = Ref(SORTS["sort"].key(jnp.asarray(y, jnp.float32)).at[d:].set(0x7FFFFFFF))
    before = keys.a[:d].copy()
    with jax.disable_jit():
        tpu_sort.ascending(keys, d)
    np.testing.assert_array_equal(keys.a[:d], np.sort(before, 0))


def _operands(shape, d, num_samples, rng):
    groups, shared, rows = shape
    stream = STREAMS[rng](d)
    words = words_of(stream, KEY, groups, num_samples)
    return (
        (words, normal(1, *shape, d), np.full((1,) * 4, 0.7, np.float32)),
        normal(2, groups, shared, num_samples),
        normal(3, *shape, d),
        normal(4, groups, shared, rows * d),
        stream,
    )


# By the way in which a row is sorted: in registers, by many threads, and padded or not.
@pytest.mark.parametrize(
    ("kernels", "op", "rng", "noise", "d", "shape"),
    [
        (pallas_ops, "sort", "jax", "gumbel", 5, (2, 2, 3)),
        (pallas_ops, "sort_descending", "philox", "normal", 6, (1, 1, 2)),
        (pallas_ops, "sort_nan_first", "philox", "gumbel", 23, (1, 1, 1)),
        (pallas_ops, "sort", "jax", "normal", 34, (2, 1, 2)),
        (pallas_ops, "sort_descending", "philox", "gumbel", 40, (1, 2, 1)),
        (pallas_ops, "sort", "philox", "gumbel", 1500, (1, 1, 1)),
        (tpu_ops, "sort", "jax", "gumbel", 5, (2, 2, 3)),
        (tpu_ops, "sort_descending", "threefry_pair", "normal", 11, (1, 1, 2)),
    ],
)
def test_kernels(kernels, op, rng, noise, d, shape):
    """Up to rounding, what XLA gives: values, sums, products, and values with the tangent."""
    num_samples = 300 if d < 1000 else 9
    of_op, w, g, t, stream = _operands(shape, d, num_samples, rng)
    static = dict(op=op, noise=noise, inner=1, stream=stream)

    def both(name, *operands):
        ours = quick(getattr(kernels, name), *of_op, *operands, platform="cpu", **static)
        return ours, quick(getattr(xla, name), *of_op, *operands, **static)

    value = SORTS[op].value
    ours, plain = both("samples")
    assert ours.dtype == plain.dtype == jnp.int32
    assert_relatively_close(value(ours), value(plain), 1e-6)
    assert_relatively_close(*both("op_sum", w))
    assert_relatively_close(*both("op_dot", g))
    codes, dot = quick(kernels.samples_and_dot, *of_op, t, platform="cpu", **static)
    assert_relatively_close(value(codes), value(plain), 1e-6)
    of_score = dict(noise=noise, order=1, power=0, stream=stream)
    assert_relatively_close(dot, quick(xla_score.score_dot, of_op[0], t, **of_score))


STRANGE = {
    "masked": [0.3, -INF, 0.1, -INF, 2.0],
    "infinite": [INF, -INF, 0.0, -0.0, 1.0],
    "nan": [NAN, 1.0, NAN, -1.0, INF],
}


@pytest.mark.parametrize("op", SORTS)
@pytest.mark.parametrize("x", STRANGE.values(), ids=STRANGE)
def test_infinities_and_nan(op, x, implementation):
    """Those of optax are NaN: its weights are."""
    f = perturbk.make_perturbed_fun(
        SPELLED[op], 9, 0.5, use_baseline=False, implementation=implementation
    )
    y = np.array(x) + 0.5 * oracles.draw("Gumbel", KEY, (5,), 9)
    expected = np.mean(SPELLED[op](jnp.asarray(y, jnp.float32)), 0)
    np.testing.assert_allclose(quick_jit(f)(KEY, jnp.array(x)), expected, rtol=1e-6)


@pytest.mark.parametrize("noise", [perturbk.Gumbel(), perturbk.Normal()])
def test_numbers_of_optax(noise, implementation):
    """Values and all derivatives, of a tree, along every axis, in both modes and mapped."""
    x = {"a": normal(1, 3, 4), "b": normal(2, 20)}

    def fun(x):
        return (
            jnp.sort(x["a"], 0),
            SPELLED["sort_descending"](x["a"]),
            jnp.flip(jnp.sort(x["b"])),
            perturbk.ranking(x["a"]),
        )

    def derivatives(make, **options):
        f = make(fun, 40, 0.6, noise, **options)

        def loss(key, x):
            return sum(jnp.sum(out**2) for out in f(key, x))

        def of_a(a):
            return loss(KEY, dict(x, a=a))

        keys = jax.random.split(KEY, 2)
        return quick_jit(
            lambda x: {
                "value": f(KEY, x),
                "gradient": jax.grad(loss, 1)(KEY, x),
                "tangent": jax.jvp(functools.partial(f, KEY), (x,), (x,))[1],
                "hessian": jax.hessian(of_a)(x["a"]),
                "keys": jax.vmap(jax.grad(loss, 1), (0, None))(keys, x),
            }
        )(x)

    found = derivatives(perturbk.make_perturbed_fun, implementation=implementation)
    expected = derivatives(optax.perturbations.make_perturbed_fun)
    # Float32 sums of 40 terms, each the product of a score and a sum over all outputs.
    assert_relatively_close(found, expected, 2e-5)


def test_the_largest_has_a_closed_form(implementation):
    """E max(x + sigma z) = sigma (logsumexp(x / sigma) + gamma), and its gradient is a softmax."""
    x, sigma, num_samples = np.array([0.3, -0.2, 0.4, 1.0]), 0.5, 1 << 14
    f = perturbk.make_perturbed_fun(jnp.sort, num_samples, sigma, implementation=implementation)
    value, gradient = jax.value_and_grad(lambda x: f(KEY, x)[-1])(jnp.asarray(x, jnp.float32))
    terms = oracles.sample_terms(np.sort, "Gumbel", KEY, x, num_samples, sigma)
    exact = sigma * (special.logsumexp(x / sigma) + np.euler_gamma)
    assert abs(oracles.z_score(value, exact, terms[0][:, -1])) < 6
    z = oracles.z_score(gradient, special.softmax(x / sigma), terms[1][:, -1])
    assert np.all(np.abs(z) < 6)


def test_blocks_change_nothing_but_rounding():
    f = perturbk.make_perturbed_fun(jnp.sort, 50, 0.5)

    def value_and_gradient(x):
        return f(KEY, x), jax.grad(lambda x: jnp.sum(f(KEY, x) ** 2))(x)

    x = normal(1, 2, 40)
    whole = quick(value_and_gradient, x)
    for numbers in (dict(block=64, residual_bytes=0), dict(sorting_network_most=8)):
        with tuned(**numbers):
            assert_relatively_close(quick(value_and_gradient, x), whole)


# --- the choice ----------------------------------------------------------------------------------


def kernel_of(fun, x, **options):
    f = perturbk.make_perturbed_fun(fun, **options)
    return perturbk.explain(f, x, platform="cuda").leaves[0]


def test_only_float32_is_sorted_in_kernels():
    """Kernels do not round the values of a sample, and 16 bits would."""
    assert kernel_of(jnp.sort, jnp.zeros(5)).kernel == "sort_gumbel"
    for fun, x in (
        (jnp.sort, jnp.zeros(5, jnp.bfloat16)),
        (lambda x: jnp.sort(x).astype(jnp.float16), jnp.zeros(5)),
        (lambda x: jnp.sort(x).astype(int), jnp.zeros(5)),
    ):
        leaf = kernel_of(fun, x)
        assert leaf.kernel is None
        assert "kernels have float32" in leaf.reason


def test_long_rows():
    for platform, most in (("cuda", 4096), ("tpu", 1024)):
        assert choose(platform, "sort", most)[0] == "pallas"
        assert choose(platform, "sort", most + 1)[0] == "xla"
        check("pallas", platform, "sort", most, THREEFRY)
        with pytest.raises(NotImplementedError, match=f"sort at most {most} values"):
            check("pallas", platform, "sort", most + 1, THREEFRY)
    with pytest.raises(NotImplementedError, match="sort at most 4096 values, got 4097"):
        f = perturbk.make_perturbed_fun(jnp.sort, 3, implementation="pallas")
        f(KEY, jnp.zeros(4097))
