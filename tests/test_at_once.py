"""All samples at once, for a TPU: codes, sums and products are those of the streamed kernels."""

import jax
import numpy as np
import pytest

from checks import assert_bit_equal, assert_relatively_close, normal, quick, words_of
from perturbk import implementations
from perturbk.kernels import at_once, xla, xla_score
from perturbk.kernels.streams import STREAMS

NUM_SAMPLES = 7


def _operands(rng, shape, inner):
    groups, shared, _, d = shape
    stream = STREAMS[rng](d if inner == 1 else inner)
    words = words_of(stream, jax.random.key(3), groups, NUM_SAMPLES)
    return stream, words, normal(1, *shape), normal(2, groups, shared, NUM_SAMPLES)


@pytest.mark.parametrize(
    ("op", "noise", "rng", "shape", "inner"),
    [
        ("argmax", "gumbel", "jax", (2, 1, 3, 11), 1),
        ("argmax", "normal", "philox", (1, 3, 2, 13), 1),
        ("argmax", "gumbel", "jax", (1, 1, 6, 5), 3),
        ("ranking", "gumbel", "philox", (1, 2, 2, 9), 1),
        ("ranking_nan_first", "normal", "jax", (2, 1, 2, 70), 1),
        ("ranking_descending", "gumbel", "threefry_pair", (1, 1, 2, 9), 1),
        ("sort_descending", "gumbel", "jax", (1, 2, 3, 9), 1),
        ("top_k_3", "gumbel", "jax", (2, 2, 2, 12), 1),
        ("top_k_indices_2", "normal", "philox", (1, 1, 4, 12), 2),
    ],
)
def test_codes_sums_and_products(op, noise, rng, shape, inner):
    stream, words, x, weights = _operands(rng, shape, inner)
    x[..., 2:4], x[0, 0, 0, :2], x[0, 0, -1, 1] = -np.inf, 0, np.nan
    sigma = np.abs(normal(5, 1, 1, 1, shape[-1]))
    of_op = dict(op=op, noise=noise, inner=inner, stream=stream)
    codes, expected = (quick(k.samples, words, x, sigma, **of_op) for k in (at_once, xla))
    if op.startswith("sort"):  # values, which XLA rounds as it contracts
        assert np.max(np.abs(np.int64(codes) - np.int64(expected))) < 64
        x = np.nan_to_num(x, neginf=-3, nan=1)
    else:
        assert_bit_equal(codes, expected)
    sums, total = (quick(k.op_sum, words, x, sigma, weights, **of_op) for k in (at_once, xla))
    g = normal(4, *total.shape)
    products = (quick(k.op_dot, words, x, sigma, g, **of_op) for k in (at_once, xla))
    assert_relatively_close(sums, total)
    assert_relatively_close(*products)


@pytest.mark.parametrize("power", [0, 1])
@pytest.mark.parametrize(
    ("noise", "rng", "size", "last", "shared"),
    [
        ("gumbel", "jax", 300, 300, 1),  # not a multiple of a vector
        ("normal", "jax", 5, 5, 2),
        ("normal", "philox", 39, 13, 2),
        ("gumbel", "philox", 4, 1, 1),
        ("gumbel", "threefry_pair", 128, 128, 1),
    ],
)
def test_score_products(noise, rng, size, last, shared, power):
    stream = STREAMS[rng](last)
    words = words_of(stream, jax.random.key(3), 2, NUM_SAMPLES)
    t, w = normal(1, 2, shared, size), normal(2, 2, shared, NUM_SAMPLES)
    which = dict(noise=noise, order=1, power=power, stream=stream)
    dots = (quick(k.score_dot, words, t, **which) for k in (at_once, xla_score))
    sums = (quick(k.score_sum, words, w, size=size, **which) for k in (at_once, xla_score))
    assert_relatively_close(*dots, 3e-6)
    assert_relatively_close(*sums, 3e-6)


def test_few_samples_on_a_tpu_are_drawn_so(monkeypatch):
    called = []
    monkeypatch.setattr(at_once, "samples", lambda *_, **__: called.append("at once"))
    monkeypatch.setattr(xla, "samples", lambda *_, **__: called.append("streamed"))
    for platform, count in (("tpu", 48), ("tpu", 49), ("cuda", 48)):
        keys, rows = np.zeros((1, 2, count), np.uint32), np.zeros((1, 1, 1, 5), np.float32)
        run = implementations.run
        run("samples", platform, keys, rows, rows, implementation="xla", op="argmax", inner=1)
    assert called == ["at once", "streamed", "streamed"]
    assert implementations.choose("tpu", "argmax", 5, num_samples=48)[0] == "xla"
    assert implementations.choose("tpu", "argmax", 5, num_samples=49)[0] == "pallas"
