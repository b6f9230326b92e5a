"""Score products of the GPU kernels, interpreted, against those of XLA."""

import functools

import jax
import numpy as np
import pytest

from checks import assert_relatively_close, normal, quick, quick_jit, words_of
from perturbk.kernels import pallas_score, xla_score
from perturbk.kernels.streams import STREAMS

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("rng", "noise", "groups", "shared", "size", "last", "num_samples"),
    [
        ("jax", "gumbel", 1, 1, 5, 5, 130),
        ("jax", "normal", 2, 5, 30, 5, 130),
        ("jax", "gumbel", 1, 21, 12, 12, 300),  # blocks of vectors
        ("philox", "gumbel", 2, 5, 30, 5, 130),
        ("philox", "normal", 1, 7, 12, 12, 300),
        ("threefry_pair", "gumbel", 2, 5, 30, 5, 130),
    ],
)
def test_products(rng, noise, groups, shared, size, last, num_samples):
    stream = STREAMS[rng](last)
    words = words_of(stream, KEY, groups, num_samples)
    v, w = normal(1, groups, shared, size), normal(2, groups, shared, num_samples)
    which = dict(noise=noise, order=1, power=0, stream=stream)
    assert_relatively_close(
        quick(pallas_score.score_dot, words, v, **which, platform="cpu"),
        quick(xla_score.score_dot, words, v, **which),
        3e-6,
    )
    assert_relatively_close(
        quick(pallas_score.score_sum, words, w, size=size, **which, platform="cpu"),
        quick(xla_score.score_sum, words, w, size=size, **which),
        3e-6,
    )


@pytest.mark.parametrize("rng", ["jax", "philox"])
def test_a_vector_among_others_gives_the_same_bits(rng):
    stream = STREAMS[rng](30)
    words = words_of(stream, KEY, 1, 130)
    w = normal(2, 1, 7, 130)
    which = dict(size=30, noise="gumbel", order=1, power=0, stream=stream, platform="cpu")
    score_sum = quick_jit(functools.partial(pallas_score.score_sum, **which))
    alone = [score_sum(words, w[:, i : i + 1]) for i in range(7)]
    np.testing.assert_array_equal(score_sum(words, w), np.concatenate(alone, 1))
