"""Rankings on a TPU: by counting and by the sorting network, and the choice between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbk import implementations
from perturbk.kernels import tpu_ranking, tpu_sort
from perturbk.kernels.ranking import SORT_KEYS
from perturbk.kernels.streams import THREEFRY
from tpu_operands import SHAPES, both, operands_of


@pytest.mark.parametrize("op", SORT_KEYS)
@pytest.mark.parametrize("name", ["few-samples", "whole-vectors"])
def test_ranks(name, op):
    operands = operands_of(shape := SHAPES[name])[:3]
    static = dict(op=op, noise="gumbel", inner=shape[-1])
    got, want = both("samples", *operands, **static)
    np.testing.assert_array_equal(got, want)
    assert got.dtype == want.dtype


class Ref:
    """A kernel's memory, for bodies that run operation by operation."""

    def __init__(self, a):
        self.a = np.array(a)
        self.shape = self.a.shape

    def __getitem__(self, i):
        return jnp.asarray(self.a[int(i)])

    def __setitem__(self, i, value):
        self.a[int(i)] = value


@pytest.mark.parametrize("op", SORT_KEYS)
@pytest.mark.parametrize("d", [1, 16, 20, 70])
def test_sorting_network(d, op):
    """Long ties of infinities and NaN, zeros of both signs, and short ties of other values."""
    rng = np.random.default_rng(d)
    shape = (tpu_sort.height(d), 8, 128)
    y = rng.choice([-np.inf, np.inf, np.nan, 0.0, -0.0, *rng.normal(size=2 * d)], shape)
    key = SORT_KEYS[op](jnp.asarray(y, jnp.float32)).at[d:].set(0x7FFFFFFF)
    index = np.broadcast_to(np.arange(shape[0]).reshape(-1, 1, 1), shape)
    keys, places = Ref(tpu_sort.distinct(key, jnp.asarray(index, jnp.int32))), Ref(index * 1.0)
    places.a = places.a.astype(np.float32)
    with jax.disable_jit():
        tpu_sort.rank(keys, places, d)
    want = np.argsort(np.argsort(key[:d], 0, stable=True), 0)
    got = [tpu_sort.rank_at(places, jnp.int32(j)) for j in range(d)]
    np.testing.assert_array_equal(np.stack(got), want)


def test_ranks_by_sorting(monkeypatch):
    """The network in its kernel, with ties by a noise that vanishes."""
    monkeypatch.setattr(tpu_ranking, "counts", lambda d: False)
    keys, x, _, _, _ = operands_of((1, 1, 2, 5, 130, 1))
    sigma = np.array([0.5, 0.0], np.float32).reshape(1, 1, 2, 1)
    static = dict(op="ranking", noise="gumbel", inner=1)
    np.testing.assert_array_equal(*both("samples", keys, x, sigma, **static))


@pytest.mark.parametrize(
    "d, counted", [(1, True), (32, True), (64, False), (90, True), (99, False)]
)
def test_the_cheaper_way_to_rank(d, counted):
    assert tpu_ranking.counts(d) == counted


def test_a_row_too_long_to_rank():
    with pytest.raises(NotImplementedError, match="at most 1024 values, got 1025"):
        implementations.check("pallas", "tpu", "ranking", 1025, THREEFRY)
