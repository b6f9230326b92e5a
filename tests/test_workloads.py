"""The workloads of the benchmarks: the numbers of optax. The benchmarks check the larger ones."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import perturbk
from checks import assert_relatively_close, assert_rounding_apart, quick_jit
from workloads import WORKLOADS

# Of an argmax also those of several blocks.
SMALL = {w.name: w for w in WORKLOADS if w.variates <= (2_000_000 if w.op == "argmax" else 300_000)}
# Interpreted, one of each kind: their sizes are those of other tests.
OF_KERNELS = {(w.op, w.noise, w.batching, w.batch > 1): w.name for w in reversed(SMALL.values())}


def results(name, make, jit=jax.jit):
    workload = SMALL[name]
    f = workload.perturbed(make)
    key, x = workload.key(), workload.x()
    g = jax.random.normal(jax.random.key(5), x.shape)

    def value_and_vjp(key, x):
        value, pull = jax.vjp(lambda x: f(key, x), x)
        return value, pull(g)[0]

    return jit(value_and_vjp)(key, x)


@functools.cache
def of_optax(name):
    return results(name, optax.perturbations.make_perturbed_fun)


def check(found, name):
    (value, vjp), (expected_value, expected_vjp) = found, of_optax(name)
    if SMALL[name].op == "sort":
        assert_relatively_close(value, expected_value)
    else:
        assert_rounding_apart(value, expected_value)
    assert_relatively_close(vjp, expected_vjp)


@pytest.mark.parametrize("name", SMALL)
def test_numbers_of_optax(name):
    check(results(name, perturbk.make_perturbed_fun), name)


@pytest.mark.parametrize("name", OF_KERNELS.values())
def test_numbers_of_the_kernels(name):
    make = functools.partial(perturbk.make_perturbed_fun, implementation="pallas")
    check(results(name, make, quick_jit), name)


def test_all_sizes_are_named_once():
    assert len({w.name for w in WORKLOADS}) == len(WORKLOADS)
    assert {w.op for w in WORKLOADS} == {"argmax", "ranking", "sort", "top_k", "general"}
    assert jnp.shape(WORKLOADS[2].x()) == (16, 100)
