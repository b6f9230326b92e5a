"""The TPU's kernels, interpreted on a CPU: bit-equal winners and ranks with the XLA kernels.

tests/test_tpu_compile.py compiles them with the real compiler, where libtpu is installed.
"""

from __future__ import annotations

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import perturbk
from perturbk import implementations
from perturbk.kernels import tpu_ops, tpu_ranking, tpu_score, tpu_sort, xla, xla_score
from perturbk.kernels.ops import OPS
from perturbk.kernels.ranking import SORT_KEYS

# (groups, shared, rows, d, num_samples, inner): by the path through kernels/tpu_units.py.
SHAPES = {
    "few-samples": (2, 1, 3, 5, 100, 3),
    "one-coordinate": (1, 1, 2, 1, 130, 1),
    "whole-vectors": (1, 2, 1, 19, 1000, 1),
    "straddling-vectors": (3, 1, 1, 9, 1100, 1),
    "many-samples": (1, 1, 1, 3, 5000, 1),
}
WIDE = {
    "segments": (1, 1, 1, 1000, 130, 1),
    "pieces": (1, 1, 1, 1100, 1000, 1),
}


def _operands(shape, *, sigma="scalar", seed=0):
    """(keys, x, sigma, weights, cotangent) with ties and infinities in x."""
    groups, shared, rows, d, num_samples, _ = shape
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=(groups, shared, rows, d)), 1)
    x[..., d // 2 :: 3] = -np.inf
    scale = {"scalar": np.full((groups, shared, 1, 1), 0.5), "array": rng.uniform(0.1, 1, x.shape)}
    return (
        jnp.asarray(rng.integers(0, 1 << 32, (groups, 2, num_samples), dtype=np.uint32)),
        jnp.asarray(x, jnp.float32),
        jnp.asarray(scale[sigma], jnp.float32),
        jnp.asarray(rng.normal(size=(groups, shared, num_samples)), jnp.float32),
        jnp.asarray(rng.normal(size=x.shape), jnp.float32),
    )


def _assert_close(got, want):
    """Equal up to the order of summation: a few units in the last place of the largest."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=4e-6 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("shape", [*SHAPES.values(), *WIDE.values()], ids=[*SHAPES, *WIDE])
@pytest.mark.parametrize("sigma, noise", [("scalar", "normal"), ("array", "gumbel")])
def test_winners(shape, noise, sigma):
    operands = _operands(shape, sigma=sigma)[:3]
    static = dict(op="argmax", noise=noise, inner=shape[-1])
    want = xla.samples(*operands, **static)
    np.testing.assert_array_equal(tpu_ops.samples(*operands, platform="cpu", **static), want)


@pytest.mark.parametrize("op", [op for op in OPS if op != "argmax"])
@pytest.mark.parametrize("name", ["few-samples", "whole-vectors"])
def test_ranks(name, op):
    operands = _operands(shape := SHAPES[name])[:3]
    static = dict(op=op, noise="gumbel", inner=shape[-1])
    want = xla.samples(*operands, **static)
    got = tpu_ops.samples(*operands, platform="cpu", **static)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == want.dtype


class _Ref:
    """A kernel's memory, for bodies that run operation by operation."""

    def __init__(self, a):
        self.a = np.array(a)
        self.shape = self.a.shape

    def __getitem__(self, i):
        return jnp.asarray(self.a[int(i)])

    def __setitem__(self, i, value):
        self.a[int(i)] = value


@pytest.mark.parametrize("op", [op for op in OPS if op != "argmax"])
@pytest.mark.parametrize("d", [1, 16, 20, 70])
def test_sorting_network(d, op):
    """Long ties of infinities and NaN, zeros of both signs, and short ties of other values."""
    rng = np.random.default_rng(d)
    shape = (tpu_sort.height(d), 8, 128)
    y = rng.choice([-np.inf, np.inf, np.nan, 0.0, -0.0, *rng.normal(size=2 * d)], shape)
    key = SORT_KEYS[op](jnp.asarray(y, jnp.float32)).at[d:].set(0x7FFFFFFF)
    index = np.broadcast_to(np.arange(shape[0]).reshape(-1, 1, 1), shape)
    keys, places = _Ref(tpu_sort.distinct(key, jnp.asarray(index, jnp.int32))), _Ref(index * 1.0)
    places.a = places.a.astype(np.float32)
    with jax.disable_jit():
        tpu_sort.rank(keys, places, d)
    want = np.argsort(np.argsort(key[:d], 0, stable=True), 0)
    got = [tpu_sort.rank_at(places, jnp.int32(j)) for j in range(d)]
    np.testing.assert_array_equal(np.stack(got), want)


def test_ranks_by_sorting(monkeypatch):
    """The network in its kernel, with ties by a noise that vanishes."""
    monkeypatch.setattr(tpu_ranking, "counts", lambda d: False)
    keys, x, _, _, _ = _operands((1, 1, 2, 5, 130, 1))
    sigma = jnp.array([0.5, 0.0]).reshape(1, 1, 2, 1)
    static = dict(op="ranking", noise="gumbel", inner=1)
    want = xla.samples(keys, x, sigma, **static)
    got = tpu_ops.samples(keys, x, sigma, platform="cpu", **static)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "d, counted", [(1, True), (32, True), (64, False), (90, True), (99, False)]
)
def test_the_cheaper_way_to_rank(d, counted):
    assert tpu_ranking.counts(d) == counted


def test_a_row_too_long_to_rank():
    keys, _, _, _, _ = _operands((1, 1, 1, 1, 3, 1))
    x = jnp.zeros((1, 1, 1, 1025))
    with pytest.raises(NotImplementedError, match="at most 1024 values, got 1025"):
        tpu_ops.samples(keys, x, x, op="ranking", noise="gumbel", inner=1, platform="tpu")


@pytest.mark.parametrize("op", ["argmax", "ranking"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sums_and_products(shape, op):
    *operands, weights, cotangent = _operands(shape)
    static = dict(op=op, noise="normal", inner=shape[-1])
    for name, last in (("op_sum", weights), ("op_dot", cotangent)):
        want = getattr(xla, name)(*operands, last, **static)
        _assert_close(getattr(tpu_ops, name)(*operands, last, platform="cpu", **static), want)


@pytest.mark.parametrize(
    "shape, noise",
    [
        *((shape, "gumbel") for shape in (*SHAPES.values(), *WIDE.values())),
        (SHAPES["few-samples"], "normal"),
    ],
    ids=[*SHAPES, *WIDE, "normal"],
)
def test_scores(shape, noise):
    keys, x, _, weights, v = _operands(shape)
    v, size = v.reshape(*x.shape[:2], -1), v[0, 0].size
    which = dict(noise=noise, order=1, power=1)
    want = xla_score.score_dot(keys, v, **which)
    _assert_close(tpu_score.score_dot(keys, v, platform="cpu", **which), want)
    want = xla_score.score_sum(keys, weights, size=size, **which)
    _assert_close(tpu_score.score_sum(keys, weights, size=size, platform="cpu", **which), want)


@pytest.mark.parametrize("op", OPS)
def test_not_a_number(op):
    """A row with NaN in x, or in sigma, next to infinities of both signs."""
    keys, _, _, _, _ = _operands(shape := (1, 1, 4, 5, 130, 1))
    inf, nan = np.inf, np.nan
    x = [[0, inf, nan, inf, nan], [nan, 0, 0, -inf, inf], [inf, -inf, 0, inf, 1], [-inf] * 5]
    sigma = np.ones((4, 5))
    sigma[3, 2] = nan
    operands = keys, jnp.asarray([[x]], jnp.float32), jnp.asarray([[sigma]], jnp.float32)
    static = dict(op=op, noise="gumbel", inner=shape[-1])
    want = xla.samples(*operands, **static)
    np.testing.assert_array_equal(tpu_ops.samples(*operands, platform="cpu", **static), want)


def test_counters_wrap_as_unsigned():
    """Elements past 2**31 of a leaf, in the last of its rows."""
    inner, d = (1 << 31) // 3, 5
    keys, x, sigma, _, _ = _operands((1, 1, 2, d, 130, inner))
    static = dict(op="argmax", noise="gumbel", inner=inner)
    want = xla.samples(keys, x, sigma, **static)
    np.testing.assert_array_equal(tpu_ops.samples(keys, x, sigma, platform="cpu", **static), want)


# --- the TPU's own interpreter: raises out of bounds, and finds races -----------------------------


def _tpu_interpreter():
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True))


@pytest.mark.parametrize("op", ["argmax", "ranking"])
def test_as_on_a_tpu(op):
    """The very kernels of the TPU, with its grid, memory and steps."""
    shape = (1, 1, 2, 12, 130, 1)
    *operands, weights, _ = _operands(shape)
    static = dict(op=op, noise="gumbel", inner=1)
    want = xla.op_sum(*operands, weights, **static)
    with _tpu_interpreter():
        got = tpu_ops.op_sum(*operands, weights, platform="tpu", **static)
    _assert_close(got, want)


def test_scores_as_on_a_tpu():
    keys, _, _, weights, _ = _operands((1, 1, 1, 30, 1100, 1))
    which = dict(noise="gumbel", order=1, power=0)
    want = xla_score.score_sum(keys, weights, size=30, **which)
    with _tpu_interpreter():
        got = tpu_score.score_sum(keys, weights, size=30, platform="tpu", **which)
    _assert_close(got, want)


# --- the public function, as it would run on a TPU -----------------------------------------------


@pytest.fixture
def tpu_kernels_on_cpu(monkeypatch):
    """implementation="pallas" takes the TPU's kernels, interpreted."""
    table = implementations._table(tpu_ops, tpu_score, platform="cpu")
    monkeypatch.setitem(implementations._KERNELS, "pallas", lambda platform: table)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize(
    "fun, noise",
    [(perturbk.argmax_one_hot, perturbk.Gumbel()), (perturbk.ranking, perturbk.Normal())],
    ids=["argmax", "ranking"],
)
def test_derivatives(tpu_kernels_on_cpu, fun, noise):
    """Value, both Jacobians and the Hessian, against the XLA kernels with the same key."""
    x, key = jnp.array([0.3, -0.2, 0.5]), jax.random.key(3)

    def by(implementation):
        f = perturbk.make_perturbed_fun(fun, 50, 0.7, noise, implementation=implementation)
        f = functools.partial(f, key)
        hessian = jax.jacfwd(jax.jacrev(f))
        return f(x), jax.jacrev(f)(x), jax.jacfwd(f)(x), hessian(x)

    for got, want in zip(by("pallas"), by("xla"), strict=True):
        _assert_close(got, want)


# --- the choice -----------------------------------------------------------------------------------


def test_choice_on_a_tpu():
    choose = functools.partial(implementations.choose, "tpu")
    assert choose("argmax", 100000)[0] == "pallas"
    assert choose("ranking", 1024)[0] == "pallas"
    name, why = choose("ranking", 1025)
    assert name == "xla"
    assert "above 1024" in why
    assert choose("argmax", 10, shared=100)[0] == "xla"
    assert choose(None, 10)[0] == "pallas"


# --- lowering for a TPU, which needs none and no libtpu ------------------------------------------


def _exported(f, *args) -> str:
    return jax.export.export(jax.jit(f), platforms=["tpu"])(*args).mlir_module()


@pytest.mark.parametrize("noise", [perturbk.Gumbel(), perturbk.Normal()])
@pytest.mark.parametrize("fun", [perturbk.argmax_one_hot, perturbk.ranking])
@pytest.mark.parametrize("d", [2, 5, 100, 1000])  # one coordinate needs no kernel
def test_exports(fun, noise, d):
    """`implementation=None` lowers value and gradient to TPU kernels, from any machine."""
    f = perturbk.make_perturbed_fun(fun, 1000, 0.5, noise)
    key, x = jax.random.key_data(jax.random.key(0)), jnp.zeros((2, d))
    text = _exported(jax.value_and_grad(lambda x: jnp.sum(f(key, x) ** 2)), x)
    assert "tpu_custom_call" in text
    if fun is perturbk.argmax_one_hot:
        assert "stablehlo.scatter" not in text


def test_exports_a_wide_row():
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, 200, 0.5)
    key = jax.random.key_data(jax.random.key(0))
    assert "tpu_custom_call" in _exported(lambda x: f(key, x), jnp.zeros(100000))
