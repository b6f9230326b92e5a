"""Temporaries of the compiled programs: a few words for each sample, whatever its size."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import perturbk
from workloads import FUNS, WORKLOADS, Workload

# Two words of key twice, a winner, and the weight, its derivative and the cotangent in and out of
# loops: what is kept of a sample. The noise of a sample would be 4 d bytes, once or more.
BYTES_PER_SAMPLE = 64


def temporaries(f, *args):
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


def gradient(f):
    return jax.grad(lambda key, x: jnp.sum(f(key, x) ** 2), 1)


@pytest.mark.parametrize("order", [0, 1], ids=["value", "gradient"])
@pytest.mark.parametrize(
    ("op", "d"),
    [("argmax", 1000), ("ranking", 64), ("ranking", 600), ("top_k", 1000), ("general", 1000)],
)
def test_growth_with_the_samples(op, d, order):
    key, x = jax.random.key(0), np.zeros(d, np.float32)

    def bytes_at(num_samples):
        f = perturbk.make_perturbed_fun(FUNS[op], num_samples, 0.5, implementation="xla")
        return temporaries(gradient(f) if order else f, key, x)

    few, many = 1 << 18, 1 << 20  # so many that no residual is small enough to be kept
    assert bytes_at(many) - bytes_at(few) <= BYTES_PER_SAMPLE * (many - few)


FAR_BELOW = [
    *(Workload(op, 1, 500, 20_000) for op in FUNS),
    *(w for w in WORKLOADS if (w.op, w.batch) == ("argmax", 64)),
]


@pytest.mark.parametrize("workload", FAR_BELOW, ids=lambda w: w.name)
def test_far_below_optax(workload):
    key, x = workload.key(), workload.x()

    def bytes_of(make):
        f = workload.perturbed(make)
        return np.array([temporaries(f, key, x), temporaries(gradient(f), key, x)])

    ours = bytes_of(perturbk.make_perturbed_fun)
    theirs = bytes_of(optax.perturbations.make_perturbed_fun)
    assert np.all(20 * ours < theirs), (ours, theirs)
