"""Every spelling in the table equals the reference of its op, and is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from perturbk.jaxprs import trace
from perturbk.kernels.sorting import SORTS
from perturbk.recognise import Match, recognise
from perturbk.spellings import SPELLINGS

SHAPES = [(5,), (3, 5), (4, 4), (2, 3, 4)]
SPECIAL = np.array([0.0, -0.0, 1.0, 1.0, -2.0, np.inf, -np.inf, np.nan, -np.nan], np.float32)
K = 2


def all_forms(ndim, dtype):
    return [(s, *form) for s in SPELLINGS for form in s.forms(ndim, dtype, K)]


def reference(op, x):
    """The op in numpy, along the last axis; ranks by an explicit stable sort."""
    x = np.asarray(x, np.float32)
    if op.name == "argmax":
        return np.arange(x.shape[op.axis]) == np.expand_dims(np.argmax(x, op.axis), -1)
    if op.name.startswith("top_k"):
        return oracles.top_k(np.moveaxis(x, op.axis, -1), K, indices="indices" in op.name)
    if op.name in SORTS:
        y = np.moveaxis(x, op.axis, -1)
        in_order = {"sort": np.sort(y, -1), "sort_descending": -np.sort(-y, -1)}
        return in_order.get(op.name, np.sort(y, -1)[..., ::-1])
    y = np.moveaxis(x if op.name == "ranking" else -x, op.axis, -1)
    if op.name == "ranking_nan_first":
        y = np.where(np.isnan(y), -np.inf, y)
        nan = np.moveaxis(~np.isnan(x), op.axis, -1)
        order = np.lexsort((y, nan), axis=-1)
    else:
        order = np.argsort(y, -1, kind="stable")
    return np.argsort(order, -1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_spellings_equal_the_op_on_special_values(shape, dtype):
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.choice(SPECIAL, (200, *shape)), dtype)
    forms = all_forms(len(shape), jnp.dtype("float32"))
    with jax.numpy_rank_promotion("allow"):
        outs = jax.jit(jax.vmap(lambda x: [f(x) for _, _, f in forms]))(xs)
    for (_, op, _), out in zip(forms, outs, strict=True):
        expected = [np.moveaxis(reference(op, x), -1, op.axis) for x in xs]
        np.testing.assert_array_equal(np.asarray(out, np.float32), expected, err_msg=str(op))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_spellings_are_found(shape, dtype, jit):
    x = jax.ShapeDtypeStruct(shape, dtype)
    for out_dtype in (jnp.float32, jnp.int32, dtype):
        for _, op, f in all_forms(len(shape), jnp.dtype(out_dtype)):
            if op.name in SORTS and not dtype == out_dtype == jnp.float32:
                continue  # tests/test_sorts.py
            g = jax.jit(f) if jit else f
            with jax.numpy_rank_promotion("allow"):
                traced, _, _ = trace(lambda x, g=g, dtype=out_dtype: g(x).astype(dtype), x)
            assert recognise(traced, 1) == (Match(0, op, jnp.dtype(out_dtype)),)
