"""One function lowers for CPU, CUDA and TPU from a machine that has a CPU only."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AbstractDevice, AbstractMesh

import perturbk

DEVICES = {
    "cuda": dict(device_kind="NVIDIA H200", num_cores=None, platform="gpu"),
    "tpu": dict(device_kind="TPU v5 lite", num_cores=1, platform="tpu"),
}
CALLS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}
KEY = jax.random.key(0)


def of(platform):
    """A mesh that tells the lowering rules which device is meant."""
    device = AbstractDevice(**DEVICES[platform])
    return jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device))


def kernels(f, x, *platforms):
    """Names of the Pallas kernels in f(KEY, x) as lowered for platforms, and the custom calls."""
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in CALLS.values()]
    lower = export.export(jax.jit(f), platforms=platforms, disabled_checks=checks)
    with of(platforms[-1] if platforms[-1] in DEVICES else "cuda"):
        text = lower(KEY, x).mlir_module()
    names = set(
        re.findall(r"perturbk_((?:argmax|ranking|sort|top_k|score)\w*?)_(?:gumbel|normal)", text)
    )
    return names, {call for call in CALLS.values() if call in text}


def tree(x):
    return {"a": perturbk.argmax_one_hot(x["a"]), "r": perturbk.ranking(x["r"])}


def tree_input(dtype):
    return {"a": np.zeros((3, 100), dtype), "r": np.zeros((2, 20), dtype)}


def reverse(f):
    return jax.grad(lambda key, x: sum(jnp.sum(o**2) for o in jax.tree.leaves(f(key, x))), 1)


def forward(f):
    return lambda key, x: jax.jvp(lambda x: f(key, x), (x,), (x,))[1]


@pytest.mark.parametrize(
    ("dtype", "noise"),
    [(np.float32, perturbk.Gumbel()), (jnp.bfloat16, perturbk.Normal())],
    ids=["float32_gumbel", "bfloat16_normal"],
)
@pytest.mark.parametrize("platform", DEVICES)
def test_kernels_for_accelerators(platform, dtype, noise):
    f, x = perturbk.make_perturbed_fun(tree, 300, 0.5, noise), tree_input(dtype)
    value, calls = kernels(f, x, platform)
    assert calls == {CALLS[platform]}
    assert {name.split("_")[0] for name in value} == {"argmax", "ranking"}
    cotangent, calls = kernels(reverse(f), x, platform)
    assert calls == {CALLS[platform]} and "score_sum" in cotangent
    assert {name.split("_")[0] for name in cotangent} == {"argmax", "ranking", "score"}
    tangent, _ = kernels(forward(f), x, platform)
    assert "score_dot" in tangent and "score_sum" not in tangent


@pytest.mark.parametrize("platform", DEVICES)
def test_long_rows_in_order(platform):
    def fun(x):
        return perturbk.ranking(x), jnp.sort(x)

    f, x = perturbk.make_perturbed_fun(fun, 300, 0.5), np.zeros((30, 100), np.float32)
    value, calls = kernels(f, x, platform)
    assert calls == {CALLS[platform]}
    assert {name.split("_")[0] for name in value} == {"ranking", "sort"}
    explained = {leaf.implementation for leaf in perturbk.explain(f, x, platform=platform).leaves}
    assert explained == {"pallas"}


def test_few_long_rows_are_left_to_the_sort_of_xla():
    """On a GPU, where a program of a kernel would sort one after the other."""
    f, x = perturbk.make_perturbed_fun(jnp.sort, 300, 0.5), np.zeros((2, 200), np.float32)
    assert kernels(f, x, "cuda") == (set(), set())
    (leaf,) = perturbk.explain(f, x, platform="cuda").leaves
    assert leaf.implementation == "xla" and "600 rows side by side" in leaf.reason
    assert kernels(f, x, "tpu")[1] == {CALLS["tpu"]}


@pytest.mark.parametrize("platform", DEVICES)
def test_score_products_for_any_fun(platform):
    f = perturbk.make_perturbed_fun(jnp.cumsum, 30_000, 0.5)  # too many samples to keep
    x = np.zeros(100, np.float32)
    assert kernels(f, x, platform) == (set(), set())
    assert kernels(reverse(f), x, platform) == ({"score_sum"}, {CALLS[platform]})
    assert kernels(forward(f), x, platform) == ({"score_dot"}, {CALLS[platform]})


@pytest.mark.parametrize("platform", DEVICES)
def test_vmap_and_second_order_lower(platform):
    f, x = perturbk.make_perturbed_fun(tree, 300, 0.5), tree_input(np.float32)

    def hvp(key, x):
        return jax.jvp(lambda x: reverse(f)(key, x), (x,), (x,))[1]

    def batch(key, x):
        return jax.vmap(hvp, (0, None))(jax.random.split(key, 3), x)

    names, calls = kernels(batch, x, platform)
    assert calls == {CALLS[platform]} and {"score_dot", "score_sum"} <= names


@pytest.mark.parametrize("missing", ["triton", "jax_triton"])
def test_triton_that_is_missing(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, 300, implementation="triton")
    with pytest.raises(ImportError, match=r"needs triton and .* Install perturbk\[triton\]"):
        kernels(f, np.zeros(5, np.float32), "cuda")


def test_a_cpu_takes_xla():
    f, x = perturbk.make_perturbed_fun(tree, 300, 0.5), tree_input(np.float32)
    for g in (f, reverse(f), forward(f)):
        assert kernels(g, x, "cpu") == (set(), set())


@pytest.mark.parametrize("platform", DEVICES)
def test_one_module_for_two_platforms(platform):
    f, x = perturbk.make_perturbed_fun(tree, 300, 0.5), tree_input(np.float32)
    names, calls = kernels(f, x, "cpu", platform)
    assert calls == {CALLS[platform]} and len(names) >= 2


@pytest.mark.parametrize("platform", DEVICES)
def test_named_xla_has_no_kernels(platform):
    f = perturbk.make_perturbed_fun(tree, 300, 0.5, implementation="xla")
    assert kernels(reverse(f), tree_input(np.float32), platform) == (set(), set())


def k_hot(x):
    return perturbk.top_k(x, 5), jax.lax.top_k(x, 5)[1]


def test_top_k_for_a_gpu():
    f, x = perturbk.make_perturbed_fun(k_hot, 300, 0.5), np.zeros((2, 77), np.float32)
    value, calls = kernels(f, x, "cuda")
    assert (value, calls) == ({"top_k_5_samples", "top_k_indices_5_sum"}, {CALLS["cuda"]})
    many = perturbk.make_perturbed_fun(k_hot, 1_000_000, 0.5)  # more winners than are to be stored
    assert kernels(many, x, "cuda")[0] == {"top_k_5_sum", "top_k_indices_5_sum"}
    cotangent, _ = kernels(reverse(f), x, "cuda")
    assert "score_sum" in cotangent


def test_top_k_for_a_tpu():
    f, x = perturbk.make_perturbed_fun(k_hot, 300, 0.5), np.zeros((2, 77), np.float32)
    assert kernels(f, x, "tpu") == ({"top_k_5_samples"}, {CALLS["tpu"]})
    assert kernels(reverse(f), x, "tpu") == ({"top_k_5_samples", "score_sum"}, {CALLS["tpu"]})


@pytest.mark.parametrize("platform", DEVICES)
@pytest.mark.parametrize("d", [2, 64, 65, 257, 3000])
def test_explain_says_what_is_lowered(platform, d):
    for fun in (perturbk.argmax_one_hot, perturbk.ranking):
        f, x = perturbk.make_perturbed_fun(fun, 300, 0.5), np.zeros(d, np.float32)
        (leaf,) = perturbk.explain(f, x, platform=platform).leaves
        names, _ = kernels(f, x, platform)
        assert bool(names) == (leaf.implementation == "pallas")


@pytest.mark.parametrize("shape", [(31,), (29, 3)])  # each first seen outside a mesh, then inside
def test_a_mesh_does_not_change_what_is_recognised(shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    for fun in (perturbk.argmax_one_hot, perturbk.ranking):
        f = perturbk.make_perturbed_fun(fun, 300, 0.5)
        assert perturbk.explain(f, x, key=KEY).leaves[0].kernel
        for platform in DEVICES:
            with of(platform):
                assert perturbk.explain(f, x, key=KEY).leaves[0].kernel
