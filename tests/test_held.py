"""What is finished before it is used: few values by one thread of a CPU, and all of them alike."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import perturbk
from checks import assert_bit_equal, tuned
from perturbk.kernels.held import HAS_SMALL_CALLS, held
from perturbk.kernels.threefry import leaf_keys
from perturbk.kernels.tuning import TUNING

WORDS = np.arange(1, 3, dtype=np.uint32)
X = np.linspace(-1, 1, 6, dtype=np.float32)


def in_one_thread(f, *operands) -> bool:
    """Whether anything of a program is, compiled for this machine."""
    return "xla_cpu_small_call" in jax.jit(f).lower(*operands).compile().as_text()


def sines(size: int):
    return lambda words, x: held(lambda words, x: jnp.sin(x * words[0]), words, jnp.resize(x, size))


@pytest.mark.skipif(not HAS_SMALL_CALLS, reason="this XLA is not known to have them")
def test_few_values_are_computed_by_one_thread():
    most = TUNING.one_thread_most
    assert in_one_thread(sines(most), WORDS, X)
    assert not in_one_thread(sines(most + 1), WORDS, X)


@pytest.mark.skipif(not HAS_SMALL_CALLS, reason="this XLA is not known to have them")
def test_what_is_mapped_over_counts():
    rows = 3
    one = TUNING.one_thread_most // rows
    x = np.stack([X] * rows)
    assert in_one_thread(jax.vmap(sines(one), (None, 0)), WORDS, x)
    assert not in_one_thread(jax.vmap(sines(one + 1), (None, 0)), WORDS, x)


def test_values_are_the_same_by_one_thread_and_by_several():
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, 700)
    key = jax.random.key(5)
    by_one = jax.jit(f)(key, X), jax.jit(lambda: leaf_keys(WORDS, 700, 1))()
    with tuned(one_thread_most=0):
        by_several = jax.jit(f)(key, X), jax.jit(lambda: leaf_keys(WORDS, 700, 1))()
    assert_bit_equal(by_one, by_several)


@pytest.mark.parametrize(
    "f",
    [
        lambda words, x: x * 2,  # one operand goes unused,
        lambda words, x: jnp.ones(3000),  # or all of them,
        lambda words, x: x,  # or there is nothing to do
        lambda words, x: jnp.pad(x, (0, 3000)) + words[0] - words[1],
        lambda words, x: held(lambda words, x: x, words, x * 3) + 1,
    ],
)
def test_whatever_is_held_compiles(f):
    """A small call aborts the process if XLA finds an operand of it without a use."""
    x = np.stack([X, X + 1])
    found = jax.jit(lambda words, x: held(f, words, x))(WORDS, X)
    mapped = jax.jit(jax.vmap(lambda x: held(f, WORDS, x)))(x)
    np.testing.assert_allclose(found, f(WORDS, X), rtol=1e-6)
    np.testing.assert_allclose(mapped, [f(WORDS, row) for row in x], rtol=1e-6)


def test_a_loop_that_is_a_small_call_itself():
    """XLA makes one of loops over a few bytes."""
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, 2, 0.5)

    def step(i, x):
        return x + f(jax.random.key(i), x)

    found = jax.jit(lambda x: jax.lax.fori_loop(0, 3, step, x))(X[:2])
    want = X[:2]
    for i in range(3):
        want = step(i, want)
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_what_is_exported_leaves_threads_to_the_compiler():
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, 500, 0.5)
    key = jax.random.key(0)
    exported = export.export(jax.jit(f), platforms=["cpu"])(key, X)
    assert "small_call" not in exported.mlir_module()
    assert_bit_equal(jax.jit(exported.call)(key, X), jax.jit(f)(key, X))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, perturbk
from jax.sharding import Mesh, NamedSharding, PartitionSpec
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
for fun in (perturbk.argmax_one_hot, perturbk.ranking, lambda x: x > jnp.mean(x)):
    f = perturbk.make_perturbed_fun(fun, 100, 0.5)
    loss = jax.jit(jax.value_and_grad(lambda x, key: jnp.sum(f(key, x)[..., 0] ** 2)))
    key = jax.random.key(0)
    sharded = loss(jax.device_put(x, sharding), key)
    for a, b in zip(sharded, loss(x, key)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
"""


def test_sharded_operands_on_several_devices():
    """XLA may put communication into what a program calls, which no kernel holds."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
