"""Rankings in registers: the network sorts, and what words prove about ranks is true."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from checks import normal, quick_jit, tuned, words_of
from perturbk.kernels import network, pallas_launch, pallas_network, pallas_ops, philox, xla
from perturbk.kernels.machine import PLAIN
from perturbk.kernels.noise import Z_LEAST, Z_MOST
from perturbk.kernels.ranking import SORT_KEYS
from perturbk.kernels.streams import STREAMS

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("n", range(1, 129))
def test_every_network_sorts(n):
    """All sequences of 0 and 1, after which it sorts any; from n = 14 on, many permutations."""
    values = np.array(list(itertools.product((0, 1), repeat=n))) if n < 14 else None
    if values is None:
        values = np.random.default_rng(n).permuted(np.tile(np.arange(n), (2000, 1)), axis=1)
    found = values.T.copy()
    for a, b in network.comparators(n):
        found[a], found[b] = np.minimum(found[a], found[b]), np.maximum(found[a], found[b])
    np.testing.assert_array_equal(found.T, np.sort(values, 1))


@pytest.mark.parametrize("n", [1, 2, 11, 12])
def test_sorts_of_arrays(n):
    values = np.random.default_rng(0).integers(-9, 9, (n, 50), np.int32)
    for sort in (network.ascending, network.in_turns):
        np.testing.assert_array_equal(sort(list(jnp.asarray(values))), np.sort(values, 0))


@pytest.mark.parametrize("n", [1, 2, 13, 64])
def test_inverse_by_the_network(n):
    places = np.random.default_rng(0).permuted(
        np.tile(np.arange(n, dtype=np.int32), (9, 1)), axis=1
    )
    for inverse in (network.inverse, lambda places: PLAIN.inverse(places, 32)):
        found = np.stack(inverse(list(jnp.asarray(places.T))))
        np.testing.assert_array_equal(found, np.argsort(places, 1).T)


@pytest.mark.parametrize("noise", ["gumbel", "normal"])
@pytest.mark.parametrize("rng", STREAMS)
def test_no_variate_lies_outside_the_span(rng, noise):
    ends = [0, 1, 511, 512, 1 << 31, (1 << 31) - 1, 2**32 - 512, 2**32 - 2, 2**32 - 1]
    words = jnp.asarray(list(itertools.product(ends, repeat=2)), jnp.uint32).T
    math = STREAMS[rng](4).math(noise)
    if rng == "philox":
        drawn = philox.NOISES[noise].four((words[0], words[1], words[1], words[0]))
    else:
        drawn = words
    z = np.concatenate([math.variate(a) for a in drawn])
    assert np.all((z > Z_LEAST) & (z < Z_MOST))


def _ranks(op, d, num_samples, rng="jax", noise="gumbel"):
    """(kernel, XLA), each from rows x [rows, d] and sigma [1 or d] to ranks [rows, d, N]."""
    stream = STREAMS[rng](d)
    words = words_of(stream, jax.random.key(5), 1, num_samples)
    params = dict(op=op, noise=noise, inner=1, stream=stream)

    def kernel(x, sigma):
        sigma = jnp.reshape(sigma, (1, 1, 1, -1))
        return pallas_ops.samples(words, x[None, None], sigma, **params, platform="cpu")[0, 0]

    def reference(x, sigma):
        sigma = jnp.reshape(sigma, (1, 1, 1, -1))
        return xla.samples(words, x[None, None], sigma, **params)[0, 0]

    return quick_jit(kernel), quick_jit(reference)


@pytest.fixture
def undecided(monkeypatch):
    """Instead of sorting keys, gives all places to one coordinate; returns which samples it did."""

    def one(row, *_):
        return (jnp.full((1, row.lanes), row.d, jnp.int32),) * row.d

    def nowhere(places, _):
        at = lax.broadcasted_iota(jnp.int32, (len(places), *places[0].shape), 0)
        found = sum(jnp.where(at == place[None], i, 0) for i, place in enumerate(places))
        return tuple(found.astype(jnp.float32))

    monkeypatch.setattr(pallas_network, "_by_keys", one)
    monkeypatch.setattr(
        pallas_launch, "machine", lambda _: dataclasses.replace(PLAIN, inverse=nowhere)
    )
    return lambda ranks: np.all(ranks == 0, 1)


@pytest.mark.parametrize(
    ("op", "rng", "d", "sigma", "spread", "most"),
    [
        *((op, "jax", 13, 0.5, 1.0, 0) for op in SORT_KEYS),
        ("ranking", "philox", 2, 1.0, 0.0, 0),
        ("ranking", "philox", 33, 0.1, 3.0, 0),
        ("ranking_descending", "jax", 33, [0.1, 2.0], 1.0, 0),
        ("ranking_descending", "philox", 66, 0.5, 1000.0, 0.1),
    ],
)
def test_sorted_ranks_are_exact(op, rng, d, sigma, spread, most, undecided):
    """Where three share a level, which happens if x is spread that wide, keys are sorted."""
    x = np.float32(spread) * normal(1, 2, d)
    sigma = np.resize(np.float32(sigma), d if isinstance(sigma, list) else 1)
    found, exact = (np.asarray(ranks(x, sigma)) for ranks in _ranks(op, d, 4000, rng))
    left = undecided(found)
    np.testing.assert_array_equal(found.swapaxes(1, 2)[~left], exact.swapaxes(1, 2)[~left])
    assert left.mean() <= most


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("op", SORT_KEYS)
def test_two_that_share_a_level(op, equal, undecided, monkeypatch):
    """Of levels so coarse that many do, or of pairs that are often equal."""
    of_all = pallas_network.level_word

    def coarse(row, y, coordinate, *, bits, descending):
        word = of_all(row, y, coordinate, bits=bits, descending=descending)
        return (word >> np.int32(bits + 12) << np.int32(bits + 12)) | coordinate

    monkeypatch.setattr(pallas_network, "level_word", coarse)
    x, sigma = normal(1, 2, 30), 1.0
    if equal:
        pairs, sigma = np.repeat(np.float32(range(15)), 2) / 2, 2e-7
        x = np.random.default_rng(0).permuted(np.stack([pairs, pairs]), axis=1)
    for pairs_most, at_least, at_most in ((16, 0, 0.25), (0, 0.5, 1)):
        ours, reference = _ranks(op, 30, 300)
        with tuned(kernel_pairs_most=pairs_most):
            found, exact = (np.asarray(ranks(x, sigma)) for ranks in (ours, reference))
        left = undecided(found)
        np.testing.assert_array_equal(found.swapaxes(1, 2)[~left], exact.swapaxes(1, 2)[~left])
        assert at_least <= left.mean() <= at_most


@pytest.mark.parametrize("op", SORT_KEYS)
def test_masked_rows_are_sorted(op, undecided):
    both = _ranks(op, 13, 200)
    for mask in (-INF, -1e9, -3e38):
        x = np.zeros((3, 13), np.float32)
        x[0, 2:9] = x[1, ::2] = x[2, 12] = mask
        found, exact = (np.asarray(ranks(x, 0.5)) for ranks in both)
        assert not np.any(undecided(found)), mask
        np.testing.assert_array_equal(found, exact)


STRANGE = {
    "ties": [0, 1, 1, -2, 1, -2, 0],
    "nan": [0, INF, NAN, 1, NAN, -INF, 2],
    "infinities": [-INF, 1, INF, -INF, INF, 2, 0],
    "nothing": [-INF] * 7,
    "masks of two kinds": [-INF, 1, -1e9, -INF, -1e9, 2, 0],
    "far apart": [-3e38, 3e38, 0, 1e30, -1e30, 1, 2],
    "zeros": [-0.0, 0.0, -0.0, 0.0, 0.0, -0.0, 1.0],
}


@pytest.mark.parametrize("op", SORT_KEYS)
def test_what_is_not_sorted_is_counted(op):
    x = np.array(list(STRANGE.values()), np.float32)
    both = _ranks(op, 7, 5, noise="normal")
    for sigma in (1e-30, 1.0, 1e30, INF, NAN, 0, -1):
        found, exact = (ranks(x, np.float32(sigma)) for ranks in both)
        np.testing.assert_array_equal(found, exact, str(sigma))


def test_words_that_ignore_doubt_are_caught(monkeypatch):
    """Values of one level would take the order of their coordinates."""
    x = np.zeros((1, 13), np.float32)
    x[0, 0] = 1e6  # few levels are left for the others
    found, exact = (ranks(x, 1.0) for ranks in _ranks("ranking", 13, 500))
    np.testing.assert_array_equal(found, exact)
    monkeypatch.setattr(pallas_network, "_in_doubt", lambda *_: False)
    found, exact = (ranks(x, 1.0) for ranks in _ranks("ranking", 13, 500))
    assert np.any(np.asarray(found) != np.asarray(exact))
