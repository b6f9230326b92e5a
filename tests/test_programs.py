"""Programs of a GPU for few samples: fewer warps, then several threads for each sample."""

import functools

import jax
import numpy as np
import pytest

from checks import assert_bit_equal, assert_relatively_close, normal, quick, tuned, words_of
from perturbk.kernels import pallas_ops, pallas_score, xla, xla_score
from perturbk.kernels.pallas import Program, program_for
from perturbk.kernels.streams import STREAMS

SIGMA = np.full((1, 1, 1, 1), 0.7, np.float32)
NARROW = {5: Program(8, 1, 4), 70: Program(16, 1, 2), 50: Program(64, 2)}


def test_few_threads_are_idle():
    for num_samples in range(1, 3000):
        program = program_for(num_samples)
        drawn = -(-num_samples // program.lanes) * program.lanes
        assert drawn <= 1.25 * (-(-num_samples // 8) * 8)
        assert program.lanes * program.times == 32 * program.warps
    assert program_for(200).lanes == 32
    assert program_for(100) == program_for(1000) == Program(128, 4)


@pytest.mark.parametrize(
    ("op", "noise", "rng", "shape", "inner", "num_samples"),
    [
        *(("argmax", "gumbel", "jax", (1, 1, 2, 101), 1, n) for n in NARROW),
        ("argmax", "gumbel", "philox", (2, 1, 1, 41), 1, 5),
        ("argmax", "normal", "jax", (1, 2, 3, 13), 3, 5),
        ("top_k_3", "gumbel", "philox", (1, 1, 1, 70), 1, 70),
        ("top_k_8", "gumbel", "jax", (1, 1, 1, 101), 1, 5),
        ("top_k_indices_2", "normal", "philox", (1, 2, 1, 11), 1, 70),
        ("ranking", "gumbel", "jax", (1, 1, 1, 9), 1, 5),
    ],
)
def test_codes_sums_and_products(op, noise, rng, shape, inner, num_samples):
    assert program_for(num_samples) == NARROW[num_samples]
    groups, shared, rows, d = shape
    stream = STREAMS[rng](d if inner == 1 else inner)
    words = words_of(stream, jax.random.key(3), groups, num_samples)
    x, t = normal(1, *shape), normal(2, groups, shared, rows * d)
    weights = normal(4, groups, shared, num_samples)
    of_op = dict(op=op, noise=noise, inner=inner, stream=stream)
    expected = quick(xla.samples, words, x, SIGMA, **of_op)
    total = quick(xla.op_sum, words, x, SIGMA, weights, **of_op)
    g = normal(5, *total.shape)
    product = quick(xla.op_dot, words, x, SIGMA, g, **of_op)
    score = quick(xla_score.score_dot, words, t, order=1, power=0, noise=noise, stream=stream)

    run = functools.partial(quick, platform="cpu", **of_op)
    with tuned(residual_bytes=0):  # sums in the kernel
        codes, dot = run(pallas_ops.samples_and_dot, words, x, SIGMA, t)
        sums = run(pallas_ops.op_sum, words, x, SIGMA, weights)
        products = run(pallas_ops.op_dot, words, x, SIGMA, g)
    assert_bit_equal(codes, expected)
    assert_relatively_close((dot, sums, products), (score, total, product), 3e-6)


@pytest.mark.parametrize(("rng", "num_samples"), [*(("jax", n) for n in NARROW), ("philox", 5)])
def test_score_products(rng, num_samples):
    stream = STREAMS[rng](37)
    words = words_of(stream, jax.random.key(3), 2, num_samples)
    t, w = normal(1, 2, 1, 111), normal(2, 2, 1, num_samples)
    of_score = dict(noise="gumbel", stream=stream, order=1, power=0)
    expected = (
        quick(xla_score.score_dot, words, t, **of_score),
        quick(xla_score.score_sum, words, w, size=111, **of_score),
    )
    found = (
        quick(pallas_score.score_dot, words, t, platform="cpu", **of_score),
        quick(pallas_score.score_sum, words, w, size=111, platform="cpu", **of_score),
    )
    assert_relatively_close(found, expected, 3e-6)


@pytest.mark.parametrize(("op", "d", "rng"), [("argmax", 41, "jax"), ("ranking", 5, "philox")])
def test_several_runs_of_a_program(op, d, rng):
    """Whatever a program takes: the order of a sum is that of the runs, not of the programs."""
    stream, num_samples = STREAMS[rng](d), 700  # 6 or 11 tiles of samples, each a run
    words = words_of(stream, jax.random.key(3), 1, num_samples)
    x, w, g = normal(1, 1, 1, 2, d), normal(4, 1, 1, num_samples), normal(5, 1, 1, 2, d)
    of_op = dict(op=op, noise="gumbel", inner=1, stream=stream, platform="cpu")

    def results(programs):
        with tuned(kernel_programs=programs, residual_bytes=0):
            return (
                quick(pallas_ops.samples, words, x, SIGMA, **of_op),
                quick(pallas_ops.op_sum, words, x, SIGMA, w, **of_op),
                quick(pallas_ops.op_dot, words, x, SIGMA, g, **of_op),
            )

    expected = results(1 << 14)
    assert_bit_equal(results(4), expected)  # of 3 or 6 runs; one too many
    assert_bit_equal(results(1), expected)


def test_counted_ranks():
    """Those of rows that no program holds, with tiles of as many outputs as coordinates."""
    stream = STREAMS["jax"](75)
    words = words_of(stream, jax.random.key(3), 1, 5)
    x, of_op = normal(1, 1, 1, 2, 75), dict(op="ranking", noise="gumbel", inner=1, stream=stream)
    expected = quick(xla.samples, words, x, SIGMA, **of_op)
    with tuned(kernel_network_most=8, kernel_sorted_most=8, kernel_ranking_tile=16):
        found = quick(pallas_ops.samples, words, x, SIGMA, platform="cpu", **of_op)
    assert_bit_equal(found, expected)
