"""The contract: the same key gives optax's numbers, on shapes drawn by hypothesis.

Programs are compiled anew for each shape, so several arrays share one: 4 times 4 trees of 8
leaves, and 3 times 3 lists of 8 arrays, each array a call of its own, make 200 shapes.
"""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import perturbk
from checks import ON_A_CPU, assert_relatively_close, assert_rounding_apart, quick_jit


def k_hot(x, axis, *, k):
    n = x.shape[axis]
    best = lax.top_k(x, min(k, n), axis=axis)[1]
    return jax.nn.one_hot(best, n, axis=axis).sum(axis + 1)


OPS = {
    "argmax": lambda x, axis: jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis], axis=axis),
    "ranking": lambda x, axis: jnp.argsort(jnp.argsort(x, axis), axis),
    "descending": lambda x, axis: jnp.argsort(jnp.argsort(-x, axis), axis),
    "top_3": functools.partial(k_hot, k=3),
    "top_2_indices": lambda x, axis: lax.top_k(x, min(2, x.shape[axis]), axis=axis)[1],
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    op: str
    shape: tuple[int, ...]
    axis: int


@st.composite
def leaves(draw):
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    axis = draw(st.integers(0, len(shape) - 1))
    return Leaf(draw(st.sampled_from(sorted(OPS))), tuple(shape), axis)


OPTIONS = st.fixed_dictionaries(
    {
        "num_samples": st.integers(1, 140),
        "sigma": st.floats(0.1, 3.0),
        "noise": st.sampled_from(
            [
                perturbk.Gumbel(),
                perturbk.Normal(),
                optax.perturbations.Gumbel(),
                optax.perturbations.Normal(),
            ]
        ),
        "use_baseline": st.booleans(),
    }
)
SEEDS = st.integers(0, 2**31 - 1)


def drawn(part, examples, **strategies):
    """Runs a test on examples, the same each time, that are others for each part."""
    settings = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    return lambda test: settings(hypothesis.seed(part)(hypothesis.given(**strategies)(test)))()


def arrays(rng, leaves):
    """Arrays with many equal entries; made by numpy, which compiles nothing."""
    return [np.round(2 * rng.normal(size=leaf.shape)).astype(np.float32) / 2 for leaf in leaves]


def apply(leaves, xs):
    return [OPS[leaf.op](x, leaf.axis) for leaf, x in zip(leaves, xs, strict=True)]


def as_tree(arrays):
    return {"a": arrays[0], "b": [arrays[1], (*arrays[2:4], None)], "c": (arrays[4:7], arrays[7])}


@pytest.mark.parametrize("part", range(3))
def test_values_of_arrays(part):
    count = 0

    @drawn(part, 3, leaves=st.lists(leaves(), min_size=8, max_size=8), options=OPTIONS, seed=SEEDS)
    def check(leaves, options, seed):
        key, xs = jax.random.key(seed), arrays(np.random.default_rng(seed), leaves)

        def values(make, **kwargs):
            fs = [
                make(lambda x, leaf=leaf: OPS[leaf.op](x, leaf.axis), **options, **kwargs)
                for leaf in leaves
            ]
            return quick_jit(lambda key, xs: [f(key, x) for f, x in zip(fs, xs, strict=True)])(
                key, xs
            )

        expected = values(optax.perturbations.make_perturbed_fun)
        for implementation in ON_A_CPU:
            found = values(perturbk.make_perturbed_fun, implementation=implementation)
            assert_rounding_apart(found, expected)
        nonlocal count
        count += len(leaves)

    assert count == 24


@pytest.mark.parametrize("part", range(4))
def test_values_of_trees(part):
    count = 0

    @drawn(part, 4, leaves=st.lists(leaves(), min_size=8, max_size=8), options=OPTIONS, seed=SEEDS)
    def check(leaves, options, seed):
        key, x = jax.random.key(seed), as_tree(arrays(np.random.default_rng(seed), leaves))

        def fun(x):
            return as_tree(apply(leaves, jax.tree.leaves(x)))

        expected = quick_jit(optax.perturbations.make_perturbed_fun(fun, **options))(key, x)
        for implementation in ON_A_CPU:
            f = perturbk.make_perturbed_fun(fun, **options, implementation=implementation)
            assert all(leaf.kernel for leaf in perturbk.explain(f, x).leaves)
            found = quick_jit(f)(key, x)
            assert_rounding_apart(found, expected)
        nonlocal count
        count += len(leaves)

    assert count == 32


@pytest.mark.parametrize("part", range(2))
def test_derivatives(part):
    count = 0

    @drawn(part, 4, leaves=st.lists(leaves(), min_size=1, max_size=2), options=OPTIONS, seed=SEEDS)
    def check(leaves, options, seed):
        key, rng = jax.random.key(seed), np.random.default_rng(seed)
        x, t = (arrays(rng, leaves) for _ in range(2))
        g = arrays(rng, jax.eval_shape(lambda x: apply(leaves, x), x))

        def derivatives(make, **kwargs):
            f = make(lambda x: apply(leaves, x), **options, **kwargs)

            @quick_jit
            def all_of_them(key, x):
                out, pull = jax.vjp(lambda x: f(key, x), x)
                (vjp,) = pull(g)
                _, jvp = jax.jvp(lambda x: f(key, x), (x,), (t,))
                gradient = jax.grad(lambda x: sum(map(jnp.vdot, g, f(key, x))))
                _, hvp = jax.jvp(gradient, (x,), (t,))
                return out, jvp, vjp, hvp

            return all_of_them(key, x)

        expected = derivatives(optax.perturbations.make_perturbed_fun)
        for implementation in ON_A_CPU:
            found = derivatives(perturbk.make_perturbed_fun, implementation=implementation)
            assert_rounding_apart(found[0], expected[0])
            assert_relatively_close(found[1:], expected[1:])
        nonlocal count
        count += 1

    assert count == 4
