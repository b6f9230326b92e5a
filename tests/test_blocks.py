"""Noise belongs to the sample and the element: no block size changes a winner or a rank."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturbk
from checks import assert_bit_equal, assert_relatively_close, quick, tuned
from perturbk.kernels import streams
from perturbk.kernels.threefry import element_bits
from perturbk.kernels.tuning import Tuning

DEFAULTS = dataclasses.asdict(Tuning())
OTHERS = {
    "smaller": {k: max(1, v // (256 if v >= 4096 else 4)) for k, v in DEFAULTS.items()},
    "larger": {k: 4 * v for k, v in DEFAULTS.items()},
}
X = {
    "argmax": np.random.default_rng(0).normal(size=(2, 70)).astype(np.float32),
    "ranking": np.random.default_rng(1).normal(size=(3, 19)).astype(np.float32),
    "top_k": np.random.default_rng(3).normal(size=(2, 37)).astype(np.float32),
    "general": np.random.default_rng(2).normal(size=(5, 40)).astype(np.float32),
}


def fun(x):
    return {
        "argmax": perturbk.argmax_one_hot(x["argmax"]),
        "ranking": perturbk.ranking(x["ranking"]),
        "top_k": perturbk.top_k(x["top_k"], 5),
        "general": x["general"] > 0,
    }


def results(implementation):
    """The value, of which all entries are integers over N, and a gradient."""
    f = perturbk.make_perturbed_fun(fun, 300, 0.5, implementation=implementation)

    def loss(x):
        out = f(jax.random.key(3), x)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(out)), out

    gradient, value = quick(jax.grad(loss, has_aux=True), X)
    return value, gradient


at_defaults = functools.cache(results)


@pytest.mark.parametrize("numbers", OTHERS)
def test_values_are_bit_equal_and_gradients_equal_up_to_rounding(numbers, implementation):
    value, gradient = at_defaults(implementation)
    with tuned(**OTHERS[numbers]):
        other_value, other_gradient = results(implementation)
    assert_bit_equal(other_value, value)
    assert_relatively_close(other_gradient, gradient)


def _by_position(k0, k1, element, machine):
    """Bits of a sample's position in its block, whatever its key."""
    del k1, machine
    position = jax.lax.iota(jnp.uint32, k0.size).reshape(k0.shape)
    return element_bits(position, jnp.zeros_like(position), element)


def test_noise_keyed_by_the_position_in_a_block_is_caught(implementation, monkeypatch):
    monkeypatch.setattr(streams, "element_bits", _by_position)
    with tuned():
        value, _ = results(implementation)
    with tuned(**OTHERS["smaller"]):
        other_value, _ = results(implementation)
    for leaf in X:
        with pytest.raises(AssertionError, match="not equal"):
            assert_bit_equal(other_value[leaf], value[leaf])


@pytest.mark.parametrize("noise", [perturbk.Gumbel(), perturbk.Normal()])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("op", ["argmax", "general"])
def test_noise_is_not_drawn_in_a_reduction(op, batched, noise):
    """There a CPU would draw one variate at a time, for each reduction anew."""
    ops = {"argmax": perturbk.argmax_one_hot, "general": lambda x: x > jnp.mean(x)}
    f = perturbk.make_perturbed_fun(ops[op], 300, 0.5, noise)
    key, x = jax.random.key(3), X["argmax"][0, :20]
    if batched:
        f, key = jax.vmap(f, (0, None)), jax.random.split(key, 5)
    program = jax.jit(f).lower(key, x).compile().as_text()
    drawing = [part for part in program.split("\n\n") if part.count("shift-left") > 10]
    assert drawing and not any(" reduce(" in part for part in drawing)
