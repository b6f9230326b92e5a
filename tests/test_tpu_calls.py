"""The TPU's kernels in its own interpreter, in whole calls, and lowered for a TPU."""

from __future__ import annotations

import functools

import jax
import jax.export
import jax.numpy as jnp
import pytest

import perturbk
from checks import quick
from perturbk import implementations
from perturbk.kernels import tpu_ops, tpu_score, xla, xla_score
from perturbk.kernels.streams import THREEFRY, Philox, ThreefryPair
from tpu_operands import assert_close, operands_of

# --- the TPU's own interpreter: raises out of bounds, and finds races -----------------------------


def _tpu_interpreter():
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True))


@pytest.mark.parametrize(
    "op, stream",
    [*((op, THREEFRY) for op in ("argmax", "ranking", "top_k_3")), ("argmax", ThreefryPair(12))],
)
def test_as_on_a_tpu(op, stream):
    """The very kernels of the TPU, with its grid, memory and steps."""
    shape = (1, 1, 2, 12, 130, 1)
    *operands, weights, _ = operands_of(shape)
    static = dict(op=op, noise="gumbel", inner=1, stream=stream)
    want = quick(xla.op_sum, *operands, weights, **static)
    with _tpu_interpreter():
        got = tpu_ops.op_sum(*operands, weights, platform="tpu", **static)
    assert_close(got, want)


def test_scores_as_on_a_tpu():
    keys, _, _, weights, _ = operands_of((1, 1, 1, 30, 1100, 1))
    which = dict(noise="gumbel", order=1, power=0)
    want = quick(xla_score.score_sum, keys, weights, size=30, **which)
    with _tpu_interpreter():
        got = tpu_score.score_sum(keys, weights, size=30, platform="tpu", **which)
    assert_close(got, want)


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
    [
        (perturbk.argmax_one_hot, perturbk.Gumbel()),
        (perturbk.ranking, perturbk.Normal()),
        (functools.partial(perturbk.top_k, k=2), perturbk.Normal()),
    ],
    ids=["argmax", "ranking", "top_k"],
)
def test_derivatives(tpu_kernels_on_cpu, fun, noise):
    """Value, both Jacobians and the Hessian, against the XLA kernels with the same key."""
    x, key = jnp.array([0.3, -0.2, 0.5]), jax.random.key(3)

    def by(implementation):
        f = perturbk.make_perturbed_fun(fun, 50, 0.7, noise, implementation=implementation)
        f = functools.partial(f, key)
        hessian = jax.jacfwd(jax.jacrev(f))
        return quick(lambda x: (f(x), jax.jacrev(f)(x), jax.jacfwd(f)(x), hessian(x)), x)

    for got, want in zip(by("pallas"), by("xla"), strict=True):
        assert_close(got, want)


# --- the choice -----------------------------------------------------------------------------------


def test_choice_on_a_tpu():
    choose = functools.partial(implementations.choose, "tpu")
    assert choose("argmax", 100000)[0] == "pallas"
    assert choose("ranking", 1024)[0] == "pallas"
    name, why = choose("ranking", 1025)
    assert name == "xla"
    assert "above 1024" in why
    assert choose("argmax", 10, shared=100)[0] == "xla"
    assert choose("top_k_5", 100000)[0] == "pallas"
    assert choose(None, 10)[0] == "pallas"
    assert choose("argmax", 10, stream=ThreefryPair(10))[0] == "pallas"
    name, why = choose("argmax", 10, stream=Philox(10))
    assert name == "xla"
    assert "Philox" in why


# --- lowering for a TPU, which needs none and no libtpu ------------------------------------------


def _top_1(x):
    return perturbk.top_k(x, 1)


def _exported(f, *args) -> str:
    return jax.export.export(jax.jit(f), platforms=["tpu"])(*args).mlir_module()


@pytest.mark.parametrize("noise", [perturbk.Gumbel(), perturbk.Normal()])
@pytest.mark.parametrize("fun", [perturbk.argmax_one_hot, perturbk.ranking, _top_1])
@pytest.mark.parametrize("d", [2, 5, 100, 1000])  # one coordinate needs no kernel
def test_exports(fun, noise, d):
    """`implementation=None` lowers value and gradient to TPU kernels, from any machine."""
    f = perturbk.make_perturbed_fun(fun, 1000, 0.5, noise)
    key, x = jax.random.key_data(jax.random.key(0)), jnp.zeros((2, d))
    text = _exported(jax.value_and_grad(lambda x: jnp.sum(f(key, x) ** 2)), x)
    assert "tpu_custom_call" in text
    if fun is perturbk.argmax_one_hot:
        assert "stablehlo.scatter" not in text


@pytest.mark.parametrize("rng", ["jax", "threefry_pair"])
def test_exports_a_wide_row(rng):
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, 200, 0.5, rng=rng)
    key = jax.random.key_data(jax.random.key(0))
    assert "tpu_custom_call" in _exported(lambda x: f(key, x), jnp.zeros(100000))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_exports_up_to_the_end_of_the_counters(dtype):
    """The kernels' counters are of 32 bits; a leaf of 2**32 elements needs more."""
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    rows = 1 << 12
    for width, fused in (((1 << 20) - 1, True), (1 << 20, False)):
        x = jax.ShapeDtypeStruct((rows, width), dtype)
        f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, 200, 0.5)
        assert ("tpu_custom_call" in _exported(f, key, x)) == fused
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, 200, 0.5, implementation="pallas")
    with pytest.raises(NotImplementedError, match=r"32-bit counters end at 2\*\*32"):
        _exported(f, key, x)
