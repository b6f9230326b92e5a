"""Dtypes: optax's on the outside, float32 on the inside, float64 where x is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import perturbk
from checks import assert_bit_equal, assert_relatively_close, quick_jit

KEY = jax.random.key(9)
X = np.array([0.5, -0.25, 0.125, 1.0], np.float32)  # exact in every dtype


def one_hot(dtype):
    return lambda x: jax.nn.one_hot(jnp.argmax(x), x.size, dtype=dtype)


def ranking(dtype):
    return lambda x: jnp.argsort(jnp.argsort(x)).astype(dtype)


FUNS = {
    **{f"argmax_{d}": one_hot(d) for d in ("float32", "float16", "bfloat16", "int32", "bool")},
    **{f"ranking_{d}": ranking(d) for d in ("float32", "bfloat16", "int32", "uint8")},
    "mask": lambda x: x > 0,
    "samples": lambda x: x,
}


@pytest.mark.parametrize("x64", [False, True])
def test_output_dtypes_are_those_of_optax(x64):
    def tree(x):
        return [f(x) for f in FUNS.values()]

    def shapes(make, x, sigma):
        return jax.eval_shape(make(tree, 3, sigma), KEY, x)

    with jax.enable_x64(x64):
        dtypes = [np.float16, jnp.bfloat16, np.float32, *([np.float64] if x64 else [])]
        for dtype in dtypes:
            for sigma in (0.5, np.float32(0.5), np.ones(4, dtype)):
                found, expected = (
                    shapes(make, X.astype(dtype), sigma)
                    for make in (
                        perturbk.make_perturbed_fun,
                        optax.perturbations.make_perturbed_fun,
                    )
                )
                assert [f.dtype for f in found] == [e.dtype for e in expected]


def test_dtypes_of_mixed_trees_are_those_of_optax():
    x = {"a": X.astype(jnp.bfloat16), "b": X, "c": X.astype(np.float16)}

    def tree(x):
        return {name: [f(leaf) for leaf in x.values()] for name, f in FUNS.items()}

    found, expected = (
        jax.eval_shape(make(tree, 3), KEY, x)
        for make in (perturbk.make_perturbed_fun, optax.perturbations.make_perturbed_fun)
    )
    assert jax.tree.map(lambda s: s.dtype, found) == jax.tree.map(lambda s: s.dtype, expected)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
@pytest.mark.parametrize("op", ["argmax_float32", "ranking_int32", "mask"])
def test_sixteen_bits_are_float32_inside(op, dtype, implementation):
    # 5000 winners cannot be counted in bfloat16, which ends at 256, nor in float16.
    f = perturbk.make_perturbed_fun(FUNS[op], 5000, 0.5, implementation=implementation)

    def results(x):
        return f(KEY, x), jax.grad(lambda x: jnp.sum(f(KEY, x) ** 2))(x)

    value, gradient = quick_jit(results)(X.astype(dtype))
    exact_value, exact_gradient = quick_jit(results)(X)
    assert gradient.dtype == dtype
    eps = jnp.finfo(dtype).eps
    assert_relatively_close(value.astype(np.float32), exact_value, eps)
    assert_relatively_close(gradient.astype(np.float32), exact_gradient, 4 * eps)
    if value.dtype == np.float32:
        assert op == "mask" or np.array_equal(value, exact_value)


def test_bfloat16_jacobian_is_better_than_that_of_optax(implementation):
    def jacobian(make, x, **options):
        f = make(one_hot("float32"), 2000, 0.5, **options)
        return np.asarray(jax.jit(jax.jacrev(f, 1))(KEY, x), np.float32)

    x = X.astype(jnp.bfloat16)
    exact = jacobian(optax.perturbations.make_perturbed_fun, X)
    ours = jacobian(perturbk.make_perturbed_fun, x, implementation=implementation)
    theirs = jacobian(optax.perturbations.make_perturbed_fun, x)
    # Two roundings: of the Jacobian and of the cotangent's dtype.
    bound = 2 * float(jnp.finfo(jnp.bfloat16).eps) * np.max(np.abs(exact))
    assert np.max(np.abs(ours - exact)) < bound < np.max(np.abs(theirs - exact))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_samples_reach_fun_in_their_dtype(dtype):
    seen = []

    def fun(x):
        seen.append(x.dtype)
        return jnp.cumsum(x)

    perturbk.make_perturbed_fun(fun, 3)(KEY, X.astype(dtype))
    assert seen and set(seen) == {jnp.dtype(dtype)}


@pytest.mark.parametrize("op", ["argmax_float32", "ranking_int32", "samples"])
@pytest.mark.parametrize("dtypes", [("float64",), ("float32",), ("float32", "float64")])
def test_x64_is_optax(op, dtypes):
    with jax.enable_x64(True):
        x = [(X + i).astype(d) for i, d in enumerate(dtypes)]

        def results(make):
            f = make(lambda x: [FUNS[op](leaf) for leaf in x], 20, 0.5)

            def loss(x):
                return sum(jnp.sum(leaf**2) for leaf in f(KEY, x))

            return quick_jit(lambda x: (f(KEY, x), jax.grad(loss)(x)))(x)

        found = results(perturbk.make_perturbed_fun)
        expected = results(optax.perturbations.make_perturbed_fun)
        rel = 1e-12 if dtypes == ("float64",) else 1e-5
        assert_relatively_close(found, expected, rel)


def test_numpy_lists_and_scalars(implementation):
    f = perturbk.make_perturbed_fun(one_hot(None), 20, implementation=implementation)
    assert_bit_equal(f(KEY, X), f(KEY, jnp.asarray(X)))
    positive = perturbk.make_perturbed_fun(lambda x: x > 0, 20, implementation=implementation)
    expected = optax.perturbations.make_perturbed_fun(lambda x: x > 0, 20)(KEY, jnp.float32(0.01))
    for scalar in (0.01, np.float32(0.01), np.array(0.01, np.float32), jnp.float32(0.01)):
        assert_bit_equal(positive(KEY, scalar), expected)


def test_strict_dtype_promotion(implementation):
    """As far as optax works under it: fun must return x's dtype."""

    def gradient(make, **options):
        f = make(lambda x: (one_hot("float32")(x), jnp.sort(x)), 20, **options)
        return quick_jit(jax.grad(lambda x: sum(out[0] for out in f(KEY, x))))(jnp.asarray(X))

    with jax.numpy_dtype_promotion("strict"):
        found = gradient(perturbk.make_perturbed_fun, implementation=implementation)
        assert_relatively_close(found, gradient(optax.perturbations.make_perturbed_fun))
