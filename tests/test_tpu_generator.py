"""`rng="hardware"`, interpreted: the TPU's kernels with Threefry in place of the chip's generator.

What is tested here is that every kernel finds the same variate at the same place. What the chip's
generator gives is not known here; tests/test_tpu_compile.py compiles the kernels that ask it.
"""

from __future__ import annotations

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import perturbk
from checks import assert_relatively_close, assert_rounding_apart, normal, quick
from perturbk import implementations
from perturbk.kernels import reference, tpu_ops, tpu_score
from perturbk.kernels.hardware import cells_of
from perturbk.kernels.noise import NOISES
from perturbk.kernels.threefry import threefry2x32

KEY = jax.random.key(7)
NOISE_OBJECTS = {"gumbel": perturbk.Gumbel(), "normal": perturbk.Normal()}


def stand_in(key, noise):
    """The noise by the stand-in, element by element, for `reference.perturbed_mean`."""
    k0, k1 = jax.random.bits(key, (2,), jnp.uint32)

    def draw(s, i, leaf):
        last = leaf.shape[-1]
        together = cells_of(last).together
        row, column = jnp.divmod(jnp.arange(leaf.size, dtype=jnp.uint32), np.uint32(last))
        s = jnp.broadcast_to(s.astype(jnp.uint32), row.shape)
        of_leaf = threefry2x32(k0, k1, jnp.uint32(0), jnp.uint32(i))
        cell = row * np.uint32(-(-last // together)) + column // together
        seeds = threefry2x32(*of_leaf, s // 1024, cell)
        bits, _ = threefry2x32(*seeds, column % together, s % 1024)
        return NOISES[noise]().variate(bits).reshape(leaf.shape)

    return draw


@pytest.fixture
def tpu_kernels_on_cpu(monkeypatch):
    """A CPU is taken for a TPU, whose kernels it interprets."""
    table = implementations._table(tpu_ops, tpu_score, platform="cpu")
    monkeypatch.setitem(implementations._KERNELS, "pallas", lambda platform: table)
    monkeypatch.setattr(implementations, "check", lambda *_: None)
    jax.clear_caches()
    yield
    jax.clear_caches()


def perturbed(fun, num_samples, noise="gumbel"):
    return perturbk.make_perturbed_fun(fun, num_samples, 0.5, NOISE_OBJECTS[noise], rng="hardware")


def expected(fun, num_samples, noise="gumbel"):
    return lambda key, x: reference.perturbed_mean(
        fun,
        key,
        x,
        num_samples=num_samples,
        sigma=0.5,
        noise=NOISE_OBJECTS[noise],
        draw=stand_in(key, noise),
    )


FUNS = {
    "argmax": perturbk.argmax_one_hot,
    "ranking": perturbk.ranking,
    "top_k": functools.partial(perturbk.top_k, k=2),
}


# By the cells of a row: one that is not full, several, several pieces; and by the vectors of
# samples: one that is not full, and several.
@pytest.mark.parametrize(
    ("fun", "noise", "shape", "num_samples"),
    [
        *((fun, "gumbel", (2, 3, 5), 37) for fun in FUNS),
        *((fun, "normal", (3, 33), 37) for fun in FUNS),
        ("argmax", "gumbel", (70,), 2100),
        ("argmax", "gumbel", (1100,), 130),
    ],
)
def test_values(tpu_kernels_on_cpu, fun, noise, shape, num_samples):
    x = normal(1, *shape)
    tree = {"a": x, "b": x[..., ::-1]}  # the second leaf has noise of its own
    per_leaf = functools.partial(jax.tree.map, FUNS[fun])
    found = quick(perturbed(per_leaf, num_samples, noise), KEY, tree)
    want = quick(expected(per_leaf, num_samples, noise), KEY, tree)
    assert_rounding_apart(found, jax.tree.map(lambda a: np.asarray(a, np.float32), want))


def test_derivatives(tpu_kernels_on_cpu):
    x = {"a": jnp.array([0.3, -0.2, 0.4]), "b": jnp.linspace(-1, 1, 66).reshape(2, 33)}

    def fun(x):
        return perturbk.argmax_one_hot(x["a"]), perturbk.ranking(x["b"])

    def derivatives(f):
        def loss(key, x):
            return sum(jnp.sum(leaf**2) for leaf in f(key, x))

        keys = jax.random.split(KEY, 2)
        xs = jax.tree.map(lambda a: jnp.stack([a, a + 0.1]), x)
        return {
            "value": f(KEY, x),
            "grad": jax.grad(loss, 1)(KEY, x),
            "jvp": jax.jvp(lambda x: f(KEY, x), (x,), (x,))[1],
            "hessian": jax.hessian(lambda a: loss(KEY, dict(x, a=a)))(x["a"]),
            "keys": jax.vmap(jax.grad(loss, 1), (0, None))(keys, x),
            "keys and x": jax.vmap(f)(keys, xs),
            "x": jax.vmap(f, (None, 0))(KEY, xs),
        }

    found, want = (quick(derivatives, f=f) for f in (perturbed(fun, 9), expected(fun, 9)))
    assert_relatively_close(found, jax.tree.map(lambda a: np.asarray(a, np.float32), want))


def test_samples_and_tangent_in_one_pass(tpu_kernels_on_cpu):
    x = normal(2, 70)
    fs = [make(perturbk.argmax_one_hot, 1100) for make in (perturbed, expected)]
    found, want = (
        quick(lambda x, f=f: jax.jvp(functools.partial(f, KEY), (x,), (x + 1,)), x) for f in fs
    )
    assert_relatively_close(found, want)


def test_a_cell_costs_least():
    assert [cells_of(n).together for n in (1, 2, 5, 8, 33, 64, 100, 1000)] == [
        1, 2, 8, 8, 16, 32, 32, 32,
    ]  # fmt: skip


# --- where there is none --------------------------------------------------------------------------

X = jnp.zeros((3, 5))


@pytest.mark.parametrize("implementation", [None, "xla", "pallas"])
def test_a_cpu_has_none(implementation):
    f = perturbk.make_perturbed_fun(
        perturbk.argmax_one_hot, rng="hardware", implementation=implementation
    )
    message = r"rng='hardware' cannot run this call: .*on 'cpu'.*rng='jax'"
    with pytest.raises(NotImplementedError, match=message):
        f(KEY, X)
    with pytest.raises(NotImplementedError, match=message):
        perturbk.explain(f, X, platform="cpu")


@pytest.mark.parametrize(
    ("fun", "reason"),
    [
        (jnp.cumsum, r"only kernels draw by it, and output 0 has none: .*cumsum"),
        (lambda x: (perturbk.ranking(x), x + 1), r"output 1 has none"),
        (lambda x: perturbk.ranking(x, axis=0), r"along the last axis, and output 0"),
    ],
)
def test_what_has_no_kernel(fun, reason):
    f = perturbk.make_perturbed_fun(fun, rng="hardware")
    with pytest.raises(NotImplementedError, match=rf"rng='hardware' cannot.*{reason}.*rng='jax'"):
        f(KEY, X)


def test_explain_on_a_tpu():
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, rng="hardware")
    (leaf,) = perturbk.explain(f, X, platform="tpu").leaves
    assert (leaf.implementation, leaf.kernel) == ("pallas", "argmax_gumbel_hardware")
    assert "generator" in leaf.reason
    f = perturbk.make_perturbed_fun(perturbk.ranking, rng="hardware")
    with pytest.raises(NotImplementedError, match="sort at most 1024 values, got 1025"):
        perturbk.explain(f, jnp.zeros(1025), platform="tpu")


@pytest.mark.parametrize("fun", FUNS)
@pytest.mark.parametrize("shape", [(2,), (3, 70), (4, 100, 40)])
def test_exports(fun, shape):
    """Value and gradient, and more vectors to a noise than XLA would take elsewhere."""
    if shape == (2,) and fun == "top_k":
        shape = (3,)  # both of two are constant
    f = perturbk.make_perturbed_fun(FUNS[fun], 300, 0.5, rng="hardware")
    key = jax.random.key_data(KEY)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(f(key, x) ** 2))(x)

    xs = jnp.zeros((3, *shape))
    export = jax.export.export(jax.jit(jax.vmap(gradient)), platforms=["tpu"])
    names = set(re.findall(r"perturbk_([a-z]+)_", export(xs).mlir_module()))
    assert names == {fun.partition("_")[0], "score"}
