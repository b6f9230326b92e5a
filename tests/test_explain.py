"""explain: the implementation, the kernel and the reason of each output leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import perturbk

X = np.zeros(5, np.float32)


def explained(fun, x=X, *, options=None, **kwargs):
    return perturbk.explain(perturbk.make_perturbed_fun(fun, **(options or {})), x, **kwargs)


def only(explanation):
    (leaf,) = explanation.leaves
    return leaf


@pytest.mark.parametrize(
    ("fun", "noise", "kernel"),
    [
        (perturbk.argmax_one_hot, perturbk.Gumbel(), "argmax_gumbel"),
        (perturbk.ranking, optax.perturbations.Normal(), "ranking_normal"),
        (lambda x: jnp.argsort(jnp.argsort(-x)), perturbk.Normal(), "ranking_descending_normal"),
        (lambda x: perturbk.top_k(x, 3), perturbk.Normal(), "top_k_3_normal"),
        (lambda x: jax.lax.top_k(x, 3)[1], perturbk.Gumbel(), "top_k_indices_3_gumbel"),
    ],
)
def test_recognised(fun, noise, kernel):
    leaf = only(explained(fun, options=dict(noise=noise)))
    assert (leaf.path, leaf.implementation, leaf.kernel) == ("", "xla", kernel)
    assert "no compiled CPU backend" in leaf.reason


def test_unrecognised():
    leaf = only(explained(jnp.cumsum))
    assert (leaf.implementation, leaf.kernel) == ("xla", None)
    assert "cumsum" in leaf.reason


def test_closed_over_arrays():
    scale = jnp.arange(5.0)
    leaf = only(explained(lambda x: perturbk.ranking(scale * x)))
    assert leaf.kernel is None and "closes over arrays" in leaf.reason


def test_mixed_trees():
    x = {"a": X, "b": np.zeros((2, 3), np.float32)}
    explanation = explained(
        lambda x: {"n": jnp.sum(x["a"]), **jax.tree.map(perturbk.ranking, x)}, x
    )
    assert [(leaf.path, leaf.kernel) for leaf in explanation.leaves] == [
        ("['a']", "ranking_gumbel"),
        ("['b']", "ranking_gumbel"),
        ("['n']", None),
    ]
    lines = str(explanation).splitlines()
    assert len(lines) == 4 and lines[0] == "on cpu:"
    assert "output['a']: xla, kernel ranking_gumbel" in lines[1]
    assert "output['n']: xla, general path" in lines[3]


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_accelerators_take_pallas(platform):
    explanation = explained(perturbk.argmax_one_hot, platform=platform)
    assert explanation.platform == platform and only(explanation).implementation == "pallas"
    # XLA ranks longer rows than the kernels hold.
    long = np.zeros(100_000, np.float32)
    assert only(explained(perturbk.ranking, long, platform=platform)).implementation == "xla"
    assert (
        only(explained(perturbk.argmax_one_hot, long, platform=platform)).implementation == "pallas"
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("named", [None, "pallas"])
def test_top_k_on_accelerators(platform, named):
    def fun(x):
        return perturbk.top_k(x, 3)

    leaf = only(explained(fun, options=dict(implementation=named), platform=platform))
    assert leaf.implementation == "pallas"


def test_named_implementation():
    for name in ("xla", "pallas"):
        leaf = only(explained(perturbk.argmax_one_hot, options=dict(implementation=name)))
        assert leaf.implementation == name and "named" in leaf.reason


def test_triton_by_name_only():
    options = dict(implementation="triton")
    leaf = only(explained(perturbk.ranking, np.zeros(64), platform="cuda", options=options))
    assert leaf.implementation == "triton" and leaf.kernel == "ranking_gumbel"
    leaf = only(
        explained(
            lambda x: perturbk.top_k(x, 3), platform="rocm", options=dict(options, rng="philox")
        )
    )
    assert leaf.implementation == "triton" and leaf.kernel == "top_k_3_gumbel_philox"
    with pytest.raises(NotImplementedError, match=r"above 64 coordinates ranking .* here are 65"):
        explained(perturbk.ranking, np.zeros(65), platform="rocm", options=options)
    with pytest.raises(NotImplementedError, match="CUDA and ROCm only, and this is 'tpu'"):
        explained(perturbk.argmax_one_hot, platform="tpu", options=options)


def test_keys_without_a_kernel():
    key = jax.random.key(0, impl="rbg")
    leaf = only(explained(perturbk.argmax_one_hot, key=key))
    assert leaf.kernel is None and "'rbg'" in leaf.reason
    with pytest.raises(NotImplementedError, match="rbg"):
        explained(perturbk.argmax_one_hot, key=key, options=dict(implementation="pallas"))


def test_shapes_are_enough():
    x = jax.ShapeDtypeStruct((1 << 20, 1 << 11), jnp.bfloat16)
    assert only(explained(perturbk.argmax_one_hot, x)).kernel == "argmax_gumbel"


def test_leaves_beyond_the_counters():
    x = jax.ShapeDtypeStruct((1 << 20, 1 << 12), jnp.float32)
    leaf = only(explained(perturbk.argmax_one_hot, x))
    assert leaf.kernel is None and f"{1 << 32} elements" in leaf.reason


def test_under_jit():
    found = []

    @jax.jit
    def f(x):
        found.append(explained(perturbk.argmax_one_hot, x))
        return x

    f(X)
    assert only(found[0]).kernel == "argmax_gumbel"
