"""Rows that are cut into pieces have the winners of whole rows."""

import functools

import jax
import numpy as np
import pytest

from checks import assert_bit_equal, assert_relatively_close, normal, quick, tuned, words_of
from perturbk.kernels import pallas_launch, pallas_ops, pallas_score, xla, xla_score
from perturbk.kernels.streams import STREAMS

PIECES = dict(kernel_piece_least=12, kernel_piece_tiles=1)
RACED = dict(kernel_piece_least=60, kernel_piece_tiles=1)
SIGMA = np.full((1, 1, 1, 1), 0.7, np.float32)


def _operands(rng, shape, d, inner=1, num_samples=150):
    stream = STREAMS[rng](d if inner == 1 else inner)
    words = words_of(stream, jax.random.key(7), shape[0], num_samples)
    return stream, words, normal(1, *shape, d)


def _counts_pieces(monkeypatch) -> list[int]:
    """The pieces of every launch that follows."""
    found = []
    cut = pallas_launch.Launch._cut

    def counted(self, tiles):
        pieces, length = cut(self, tiles)
        found.append(pieces)
        return pieces, length

    monkeypatch.setattr(pallas_launch.Launch, "_cut", counted)
    return found


@pytest.mark.parametrize("rng", ["jax", "philox"])
@pytest.mark.parametrize(
    ("op", "noise", "shape", "d", "inner", "least"),
    [
        ("argmax", "gumbel", (1, 1, 1), 133, 1, RACED),
        ("argmax", "gumbel", (2, 1, 3), 50, 1, PIECES),
        ("argmax", "normal", (1, 2, 3), 37, 3, PIECES),
        ("top_k_5", "gumbel", (1, 1, 2), 49, 1, PIECES),  # the last piece has one coordinate
        ("top_k_indices_3", "normal", (2, 1, 1), 41, 1, PIECES),
        ("top_k_2", "gumbel", (1, 2, 1), 150, 1, RACED),
    ],
)
def test_codes_sums_and_products(op, noise, shape, d, inner, least, rng, monkeypatch):
    stream, words, x = _operands(rng, shape, d, inner)
    x[..., 3] = x[0, 0, 0, -2:] = -np.inf
    t, weights = normal(2, *shape[:2], shape[2] * d), normal(3, *shape[:2], words.shape[-1])
    of_op = dict(op=op, noise=noise, inner=inner, stream=stream)
    expected = quick(xla.samples, words, x, SIGMA, **of_op)
    total = quick(xla.op_sum, words, x, SIGMA, weights, **of_op)
    g = normal(4, *total.shape)
    product = quick(xla.op_dot, words, x, SIGMA, g, **of_op)
    score = quick(xla_score.score_dot, words, t, order=1, power=0, noise=noise, stream=stream)
    with tuned(**least):
        pieces = _counts_pieces(monkeypatch)
        run = functools.partial(quick, platform="cpu", **of_op)
        codes = run(pallas_ops.samples, words, x, SIGMA)
        both = run(pallas_ops.samples_and_dot, words, x, SIGMA, t)
        sums = run(pallas_ops.op_sum, words, x, SIGMA, weights)
        products = run(pallas_ops.op_dot, words, x, SIGMA, g)
    assert min(pieces) > 1
    assert_bit_equal((codes, both[0]), (expected, expected))
    assert_relatively_close(both[1], score, 3e-6)
    assert_relatively_close((sums, products), (total, product), 3e-6)


def test_nan_and_scales_of_their_own(monkeypatch):
    stream, words, x = _operands("jax", (1, 1, 4), 60)
    x[0, 0, 0, 41] = x[0, 0, 1, 7:50] = np.nan
    x[0, 0, 2], x[0, 0, 3, 33] = -np.inf, np.inf
    sigma = np.abs(normal(5, *x.shape))
    for op in ("argmax", "top_k_5"):
        of_op = dict(op=op, noise="gumbel", inner=1, stream=stream)
        expected = quick(xla.samples, words, x, sigma, **of_op)
        with tuned(**PIECES):
            pieces = _counts_pieces(monkeypatch)
            found = quick(pallas_ops.samples, words, x, sigma, platform="cpu", **of_op)
        assert pieces == [5]
        assert_bit_equal(found, expected)


def test_a_piece_that_forgets_its_place_is_caught(monkeypatch):
    """Without its first coordinate, every piece would draw the same noise."""
    stream, words, x = _operands("jax", (1, 1, 1), 60)
    of_op = dict(op="argmax", noise="gumbel", inner=1, stream=stream)
    expected = quick(xla.samples, words, x, SIGMA, **of_op)
    row = pallas_launch.Row
    monkeypatch.setattr(
        pallas_launch, "Row", lambda *args: row(*args[:5], np.int32(0) * args[5], *args[6:])
    )
    with tuned(**PIECES):
        found = quick(pallas_ops.samples, words, x, SIGMA, platform="cpu", **of_op)
    with pytest.raises(AssertionError):
        assert_bit_equal(found, expected)


@pytest.mark.parametrize("rng", ["jax", "philox"])
def test_pieces_of_a_score_product(rng):
    stream, words, x = _operands(rng, (2, 3, 1), 101)
    of_score = dict(noise="gumbel", stream=stream, order=1, power=0)
    expected = quick(xla_score.score_dot, words, x[:, :, 0], **of_score)
    with tuned(**PIECES):
        run = functools.partial(pallas_score.score_dot, platform="cpu", **of_score)
        jaxpr = jax.make_jaxpr(run)(words, x[:, :, 0])
        assert f"grid=(2, 5, {13 if rng == 'jax' else 7})" in str(jaxpr)
        assert_relatively_close(quick(run, words, x[:, :, 0]), expected, 3e-6)
