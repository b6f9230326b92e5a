"""Score products of the GPU kernels, interpreted, against those of XLA."""

import jax
import jax.numpy as jnp
import pytest

from checks import assert_relatively_close
from perturbk.kernels import pallas_score, xla_score
from perturbk.kernels.streams import STREAMS


def _words(stream, groups, num_samples):
    keys = jax.random.split(jax.random.key(0), groups)
    return jnp.stack([stream.words(key, num_samples, 0) for key in keys])


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
    words = _words(stream, groups, num_samples)
    v = jax.random.normal(jax.random.key(1), (groups, shared, size))
    w = jax.random.normal(jax.random.key(2), (groups, shared, num_samples))
    which = dict(noise=noise, order=1, power=0, stream=stream)
    assert_relatively_close(
        pallas_score.score_dot(words, v, **which, platform="cpu"),
        xla_score.score_dot(words, v, **which),
        3e-6,
    )
    assert_relatively_close(
        pallas_score.score_sum(words, w, size=size, **which, platform="cpu"),
        xla_score.score_sum(words, w, size=size, **which),
        3e-6,
    )


@pytest.mark.parametrize("rng", ["jax", "philox"])
def test_a_vector_among_others_gives_the_same_bits(rng):
    stream = STREAMS[rng](30)
    words = _words(stream, 1, 130)
    w = jax.random.normal(jax.random.key(2), (1, 7, 130))
    which = dict(size=30, noise="gumbel", order=1, power=0, stream=stream, platform="cpu")
    alone = [pallas_score.score_sum(words, w[:, i : i + 1], **which) for i in range(7)]
    assert jnp.array_equal(pallas_score.score_sum(words, w, **which), jnp.concatenate(alone, 1))
