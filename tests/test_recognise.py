"""Recognition: what users write is found, and nothing else is taken for an op."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn

from perturbk.jaxprs import trace
from perturbk.ops import argmax_one_hot, ranking, top_k
from perturbk.recognise import Match, Miss, _table, recognise
from perturbk.spellings import Op

N = 5
X = jnp.zeros(N)


def outputs(fun, x):
    return recognise(trace(fun, x)[0], len(jax.tree.leaves(x)))


FOUND = {  # as users write them, not as the table does
    "one_hot": (lambda x: nn.one_hot(jnp.argmax(x), N), "argmax"),
    "one_hot_x_dtype": (lambda x: nn.one_hot(x.argmax(), x.size, dtype=x.dtype), "argmax"),
    "one_hot_int": (lambda x: nn.one_hot(jnp.argmax(x, axis=-1), N, dtype=int), "argmax"),
    "one_hot_bool": (lambda x: nn.one_hot(jnp.argmax(x), N, dtype=bool), "argmax"),
    "lax": (lambda x: nn.one_hot(lax.argmax(x, 0, jnp.int32), N), "argmax"),
    "eye": (lambda x: jnp.eye(N)[jnp.argmax(x)], "argmax"),
    "eye_int": (lambda x: jnp.eye(N, dtype=int)[jnp.argmax(x)], "argmax"),
    "compare": (lambda x: (jnp.arange(N) == jnp.argmax(x)).astype(x.dtype), "argmax"),
    "compared": (lambda x: (jnp.argmax(x) == jnp.arange(N)).astype(int), "argmax"),
    "keepdims": (lambda x: jnp.arange(N) == jnp.argmax(x, -1, keepdims=True), "argmax"),
    "where": (lambda x: jnp.where(jnp.arange(N) == x.argmax(), 1.0, 0.0), "argmax"),
    "set": (lambda x: jnp.zeros_like(x).at[jnp.argmax(x)].set(1), "argmax"),
    "set_zeros": (lambda x: jnp.zeros(N).at[jnp.argmax(x)].set(1.0), "argmax"),
    "set_bool": (lambda x: jnp.zeros(N, bool).at[jnp.argmax(x)].set(True), "argmax"),
    "stopped": (lambda x: lax.stop_gradient(nn.one_hot(jnp.argmax(x), N)), "argmax"),
    "argsort": (lambda x: jnp.argsort(jnp.argsort(x)), "ranking"),
    "methods": (lambda x: x.argsort().argsort().astype(jnp.float32), "ranking"),
    "stable": (lambda x: jnp.argsort(jnp.argsort(x, stable=True), stable=True), "ranking"),
    "inverse": (lambda x: jnp.zeros(N, int).at[jnp.argsort(x)].set(jnp.arange(N)), "ranking"),
    "inverse_float": (lambda x: jnp.zeros(N).at[x.argsort()].set(jnp.arange(N)), "ranking"),
    "negative": (lambda x: jnp.argsort(jnp.argsort(-x)).astype(x.dtype), "ranking_descending"),
    "k_hot": (lambda x: nn.one_hot(lax.top_k(x, 3)[1], N).sum(axis=0), "top_k_3"),
    "k_hot_int": (lambda x: nn.one_hot(lax.top_k(x, 2)[1], N, dtype=int).sum(-2), "top_k_2"),
    "k_hot_max": (lambda x: jnp.max(nn.one_hot(lax.top_k(x, 2)[1], N), 0), "top_k_2"),
    "k_hot_eye": (lambda x: jnp.sum(jnp.eye(N)[lax.top_k(x, 2)[1]], 0), "top_k_2"),
    "k_hot_set": (lambda x: jnp.zeros(N).at[lax.top_k(x, 3)[1]].set(1), "top_k_3"),
    "k_hot_set_like": (lambda x: jnp.zeros_like(x).at[lax.top_k(x, 3)[1]].set(1.0), "top_k_3"),
    "top_k_all": (lambda x: nn.one_hot(lax.top_k(x, N)[1], N).sum(0), f"top_k_{N}"),
    "top_k_indices": (lambda x: lax.top_k(x, 2)[1], "top_k_indices_2"),
    "top_k_indices_float": (lambda x: lax.top_k(x, 2)[1].astype(x.dtype), "top_k_indices_2"),
}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_users_spellings_are_found(name, wrap):
    fun, kernel = FOUND[name]
    (found,) = outputs(wrap(fun), X)
    assert found.op.name == kernel
    assert found.dtype == jax.eval_shape(fun, X).dtype
    batch = jnp.zeros((3, 2, N))
    (lifted,) = outputs(jax.vmap(jax.vmap(wrap(fun))), batch)
    assert (lifted.op.name, lifted.op.axis) == (kernel, 2)


def own_rule(f):
    g = jax.custom_vjp(lambda x: f(x))
    g.defvjp(lambda x: (g(x), None), lambda _, ct: (ct,))
    return g


@pytest.mark.parametrize(
    "wrap",
    [
        own_rule,
        lambda f: jax.jit(f, inline=True),
        lambda f: jax.jit(f, donate_argnums=0),
        lambda f: jax.jit(f, out_shardings=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
        lambda f: lambda x: jax.jit(lambda x, axis: f(x, axis), static_argnums=1)(x, 0),
        lambda f: jax.named_call(f, name="winner"),
        lambda f: functools.partial(lambda scope, x: f(x), None),
    ],
    ids=["own_rule", "inline", "donated", "sharded", "static", "named", "partial"],
)
def test_wrapped_functions_are_found(wrap):
    (found,) = outputs(lambda x: wrap(argmax_one_hot)(x), X)
    assert found == Match(0, Op("argmax", 0), jnp.dtype("float32"))


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_users_spellings_are_found_on_a_leading_axis(name, wrap):
    fun, kernel = FOUND[name]
    (found,) = outputs(jax.vmap(wrap(fun), in_axes=1, out_axes=1), jnp.zeros((N, 3)))
    assert (found.op.name, found.op.axis) == (kernel, 0)


def test_descending_argsort_is_found_and_flagged():
    # jnp.argsort(descending=True) puts NaN first; the ranks of -x put it last.
    (found,) = outputs(lambda x: jnp.argsort(jnp.argsort(x, descending=True)), X)
    assert found.op == Op("ranking_nan_first", 0)


@pytest.mark.parametrize("fun", [argmax_one_hot, ranking, lambda x, axis: top_k(x, 2, axis)])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_axis_is_that_of_the_spelling(fun, axis):
    (found,) = outputs(lambda x: fun(x, axis), jnp.zeros((3, 3, 3)))
    assert found.op.axis == axis % 3


NEAR_MISSES = {
    "argmin": lambda x: nn.one_hot(jnp.argmin(x), N),
    "shifted": lambda x: nn.one_hot(jnp.argmax(x) + 1, N),
    "wrong_n": lambda x: nn.one_hot(jnp.argmax(x), N + 1),
    "doubled": lambda x: nn.one_hot(jnp.argmax(x), N) * 2,
    "maximum": lambda x: (x == x.max()).astype(x.dtype),  # several ones at a tie
    "two": lambda x: jnp.zeros_like(x).at[jnp.argmax(x)].set(2),
    "top": lambda x: lax.top_k(x, 1)[0],
    "index": jnp.argmax,
    "smallest": lambda x: nn.one_hot(lax.top_k(-x, 2)[1], N).sum(0),
    "threshold": lambda x: (x >= lax.top_k(x, 2)[0][-1]).astype(x.dtype),  # more than k at a tie
    "of_argsort": lambda x: nn.one_hot(jnp.argsort(-x)[:2], N).sum(0),  # its zeros are equal
    "rows": lambda x: nn.one_hot(lax.top_k(x, 2)[1], N),
    "second": lambda x: nn.one_hot(lax.top_k(x, 2)[1][1], N),
    "approximate": lambda x: lax.approx_max_k(x, 2)[1],
    "scaled": lambda x: jnp.argsort(jnp.argsort(2 * x)),
    "once": jnp.argsort,
    "thrice": lambda x: jnp.argsort(jnp.argsort(jnp.argsort(x))),
    "unstable": lambda x: jnp.argsort(jnp.argsort(x, stable=False)),
    "reversed": lambda x: jnp.argsort(jnp.argsort(x)[::-1]),  # ties the other way
    "last_first": lambda x: N - 1 - jnp.argsort(jnp.argsort(x)),
    "second_descending": lambda x: jnp.argsort(jnp.argsort(x), descending=True),
    "bool_ranks": lambda x: jnp.argsort(jnp.argsort(x)).astype(bool),
    "through_bool": lambda x: jnp.argsort(jnp.argsort(x)).astype(bool).astype(float),
    "reshaped": lambda x: argmax_one_hot(x.reshape(1, N)),
    "rounded": lambda x: argmax_one_hot(x.astype(jnp.bfloat16)),
    "identity": lambda x: x,
    "constant": lambda x: jnp.ones(3),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_are_not_found(name):
    (found,) = outputs(NEAR_MISSES[name], X)
    assert isinstance(found, Miss)


def test_transposed_axes_of_a_square_are_not_found():
    x = jnp.zeros((3, 3))
    (found,) = outputs(lambda x: nn.one_hot(jnp.argmax(x, 0), 3), x)
    assert isinstance(found, Miss)
    (found,) = outputs(lambda x: jnp.argsort(jnp.argsort(x, 0), 1), x)
    assert isinstance(found, Miss)


def test_ranks_too_large_for_their_dtype_are_not_found():
    def ranks(n, dtype):
        return outputs(lambda x: ranking(x).astype(dtype), jnp.zeros(n))[0]

    assert isinstance(ranks(128, jnp.int8), Match)
    assert "int8 does not hold 128" in ranks(129, jnp.int8).reason
    assert isinstance(ranks(257, jnp.bfloat16), Match)
    assert "bfloat16 does not hold 257" in ranks(258, jnp.bfloat16).reason


def test_dtypes_without_these_integers_are_not_found():
    def winner(dtype):
        return outputs(lambda x: argmax_one_hot(x).astype(dtype), X)[0]

    def ranks(n, dtype):
        return outputs(lambda x: ranking(x).astype(dtype), jnp.zeros(n))[0]

    assert isinstance(winner(jnp.float8_e4m3fn), Match)
    assert "zero" in winner(jnp.float8_e8m0fnu).reason
    assert "real" in winner(jnp.complex64).reason
    assert isinstance(ranks(16, jnp.float8_e3m4), Match)
    assert "does not hold 16" in ranks(17, jnp.float8_e3m4).reason  # it ends at 15.5
    assert "key<fry>" in outputs(lambda x: jax.random.key(jnp.argmax(x)), X)[0].reason


def test_more_than_kernels_take_is_not_found():
    def reason(k):
        (found,) = outputs(lambda x: top_k(x, k), jnp.zeros(40))
        return found.reason if isinstance(found, Miss) else ""

    assert reason(32) == ""
    assert "k is 33, and kernels take up to 32" in reason(33)


def test_indices_too_large_for_their_dtype_are_not_found():
    def indices(n):
        return outputs(lambda x: lax.top_k(x, 2)[1].astype(jnp.int8), jnp.zeros(n))[0]

    assert isinstance(indices(128), Match)
    assert "int8 does not hold 128" in indices(129).reason


def test_integer_inputs_are_not_found():
    assert "int32" in outputs(argmax_one_hot, jnp.arange(4))[0].reason


def test_reasons():
    array = jnp.ones(N)
    host = np.ones(N, np.float32)
    x = {"a": X, "b": X}
    assert "several" in outputs(lambda x: ranking(x["a"] + x["b"]), x)[0].reason
    assert "closes over" in outputs(lambda x: ranking(x + array), X)[0].reason
    assert "closes over" in outputs(jax.jit(lambda x: ranking(x + host)), X)[0].reason
    assert "does not depend" in outputs(lambda x: 1.0, X)[0].reason
    assert "sort" in outputs(jnp.argsort, X)[0].reason

    def printing(x):
        jax.debug.print("{}", x[0])
        return ranking(x)

    assert "side effects" in outputs(printing, X)[0].reason


def test_trees():
    x = {"a": X, "b": [jnp.zeros((2, 3)), None], "c": jnp.zeros(4)}
    found = outputs(lambda x: jax.tree.map(argmax_one_hot, x), x)
    assert [(m.leaf, m.op.axis) for m in found] == [(0, 0), (1, 1), (2, 0)]

    scale = jnp.ones(4)
    found = outputs(lambda x: [ranking(x["c"]), x["a"] ** 2, ranking(x["c"] * scale)], x)
    assert found[0] == Match(2, Op("ranking", 0), jnp.dtype("int32"))
    assert isinstance(found[1], Miss) and isinstance(found[2], Miss)


def test_deep_programs_do_not_overflow_the_stack():
    def fun(x):
        for _ in range(2000):
            x = x + 1
        return ranking(x)

    assert isinstance(outputs(fun, X)[0], Miss)


def test_x64_is_found():
    with jax.enable_x64(True):
        for fun in (argmax_one_hot, ranking, lambda x: top_k(x, 2)):
            assert isinstance(outputs(fun, jnp.zeros(N, jnp.float64))[0], Match)
            assert isinstance(outputs(fun, jnp.zeros(N, jnp.float32))[0], Match)


def test_strict_promotion_is_no_obstacle():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        (found,) = outputs(argmax_one_hot, jnp.zeros((3, 13)))
    assert found.op == Op("argmax", 1)


def test_repeated_calls_do_not_trace_the_table():
    outputs(ranking, jnp.zeros(17))
    before = _table.cache_info()
    outputs(lambda x: x.argsort().argsort(), jnp.zeros(17))
    outputs(lambda x: jnp.exp(x), jnp.zeros(18))
    after = _table.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)
