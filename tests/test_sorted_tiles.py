"""Rankings of long rows in tiles: the sort sorts, and its ranks are those of XLA, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checks import (
    assert_bit_equal,
    assert_relatively_close,
    normal,
    quick,
    quick_jit,
    tuned,
    words_of,
)
from perturbk.kernels import bitonic, pallas_ops, pallas_sorted, xla, xla_score
from perturbk.kernels.machine import PLAIN
from perturbk.kernels.ranking import SORT_KEYS
from perturbk.kernels.streams import STREAMS

KEY = jax.random.key(5)
INF, NAN = np.inf, np.nan


@pytest.fixture(autouse=True)
def short_rows_too():
    with tuned(kernel_network_most=64):
        yield


@pytest.mark.parametrize(
    ("height", "across"), [(1, 1), (2, 1), (2, 2), (64, 8), (8, 8), (64, 2), (32, 1)]
)
def test_a_tile_in_ascending_order(height, across):
    values = np.random.default_rng(height).integers(-40, 40, (height, 3), np.int32)
    found = jax.jit(bitonic.ascending, static_argnums=1)(values, across)
    places = np.asarray(bitonic.places(height, across))[:, 0]
    np.testing.assert_array_equal(np.sort(places), np.arange(height))
    expected = np.sort(values, 0)[places]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(PLAIN.ascending_rows(jnp.asarray(values), across), expected)


def _both(name, op, d, num_samples, rng="jax", noise="gumbel"):
    """(kernel, XLA) of a primitive, each from x [rows, d], sigma [1 or d] and more."""
    stream = STREAMS[rng](d)
    words = words_of(stream, KEY, 1, num_samples)
    params = dict(op=op, noise=noise, inner=1, stream=stream)

    def of(kernel, **more):
        def run(x, sigma, *operands):
            sigma = jnp.reshape(sigma, (1, 1, 1, -1))
            return kernel(words, x[None, None], sigma, *operands, **params, **more)

        return quick_jit(run)

    ours, reference = getattr(pallas_ops, name), getattr(xla, name, None)
    return of(ours, platform="cpu"), reference and of(reference)


@pytest.mark.parametrize(
    ("op", "rng", "noise", "d", "num_samples", "sigma"),
    [
        ("ranking", "jax", "gumbel", 65, 5, 0.5),
        ("ranking", "philox", "normal", 100, 140, 0.1),
        ("ranking_descending", "philox", "gumbel", 129, 9, 0.5),
        ("ranking_nan_first", "threefry_pair", "gumbel", 128, 9, 0.5),
        ("ranking", "jax", "gumbel", 1030, 2, 3.0),
    ],
)
def test_ranks_are_those_of_xla(op, rng, noise, d, num_samples, sigma):
    x = np.round(2 * normal(1, 2, d)) / 2
    ours, reference = _both("samples", op, d, num_samples, rng, noise)
    assert_bit_equal(ours(x, sigma), reference(x, sigma))


STRANGE = {
    "masked": [(slice(3, 60), -INF)],
    "masked by a number": [(slice(None, None, 2), -1e9)],
    "nothing": [(slice(None), -INF)],
    "nan": [(7, NAN), (slice(30, 33), NAN), (-1, INF)],
    "zeros": [(slice(None), 0.0), (5, -0.0)],
    "far": [(0, 1e8)],
}


@pytest.mark.parametrize("op", SORT_KEYS)
def test_equal_keys_go_by_their_coordinates(op):
    x = np.tile(np.linspace(-1, 1, 70, dtype=np.float32), (len(STRANGE), 1))
    for row, changes in zip(x, STRANGE.values(), strict=True):
        for at, value in changes:
            row[at] = value
    ours, reference = _both("samples", op, 70, 6)
    for sigma in (1e-30, 0.5, 1e30, INF, NAN, 0, -1):
        assert_bit_equal(ours(x, np.float32(sigma)), reference(x, np.float32(sigma)))


def test_one_round_alone_is_caught(monkeypatch):
    """Of equal keys, all would have the rank of the first."""
    ours, reference = _both("samples", "ranking", 70, 6)
    monkeypatch.setattr(pallas_sorted, "_some_are_equal", lambda *_: False)
    x = np.ones((1, 70), np.float32)
    assert np.any(np.asarray(ours(x, 1e-30)) != np.asarray(reference(x, 1e-30)))


@pytest.fixture
def undecided(monkeypatch):
    """Instead of sorting keys, leaves samples with no ranks; returns whether it did."""

    def none(row, keys, sort):
        del row, sort
        return jnp.full_like(keys, -1)

    monkeypatch.setattr(pallas_sorted, "_rank_by_keys", none)
    return lambda ranks: ranks == np.array(-1).astype(ranks.dtype)


@pytest.mark.parametrize(
    ("op", "rng", "d", "sigma", "most"),
    [
        *((op, "jax", 70, 0.5, 1e-3) for op in SORT_KEYS),
        ("ranking", "philox", 128, 0.5, 1e-3),
        ("ranking_descending", "philox", 300, 0.5, 1e-3),
        ("ranking", "jax", 1000, 0.5, 0.05),
        ("ranking_descending", "philox", 1024, 0.5, 0.05),
    ],
)
def test_ranks_by_levels_are_exact(op, rng, d, sigma, most, undecided):
    ours, reference = _both("samples", op, d, 200, rng)
    x = normal(1, 2, d)
    x[0, 3:60], x[1, ::3] = -INF, -1e9  # as masks are made
    found, exact = (np.asarray(ranks(x, sigma)) for ranks in (ours, reference))
    left = undecided(found)
    np.testing.assert_array_equal(found[~left], exact[~left])
    assert left.mean() < most


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("op", SORT_KEYS)
def test_two_that_share_a_level(op, equal, undecided, monkeypatch):
    """Of levels so coarse that many do, or of values that are equal."""
    of_all = pallas_sorted.level_word

    def coarse(row, y, coordinate, *, bits, descending):
        word = of_all(row, y, coordinate, bits=bits, descending=descending)
        return (word >> np.int32(bits + 10) << np.int32(bits + 10)) | coordinate

    if not equal:
        monkeypatch.setattr(pallas_sorted, "level_word", coarse)
    x = normal(1, 2, 70) + np.float32(20000 if equal else 0)
    for pairs_most, at_least, at_most in ((16, 0, 0.1), (0, 0.5, 1)):
        ours, reference = _both("samples", op, 70, 300)
        with tuned(kernel_pairs_most=pairs_most):
            found, exact = (np.asarray(ranks(x, 1.0)) for ranks in (ours, reference))
        left = undecided(found)
        np.testing.assert_array_equal(found[~left], exact[~left])
        assert at_least <= left.mean() <= at_most


def test_shared_levels_are_not_ranked(undecided):
    x = np.zeros((1, 70), np.float32)
    x[0, 0] = 1e8  # few levels are left for the others
    found = np.asarray(_both("samples", "ranking", 70, 200)[0](x, 1.0))
    assert np.all(undecided(found))


@pytest.mark.parametrize(("rng", "d"), [("jax", 70), ("philox", 70), ("philox", 260)])
def test_addresses_are_in_memory(rng, d, monkeypatch):
    """Of pairs that share a level, and where none do; interpreted, others would be clamped."""
    address, seen = pallas_sorted._Memory.at, []

    def noted(memory, place):
        at = address(memory, place)
        inside = jnp.all((at >= 0) & (at < memory.ref.shape[0]))
        jax.debug.callback(lambda inside: seen.append(bool(inside)), inside)
        return at

    monkeypatch.setattr(pallas_sorted._Memory, "at", noted)
    x = normal(1, 3, d) + np.float32([[0], [20000], [NAN]])
    ranks = _both("samples", "ranking", d, 8, rng)[0]
    jax.block_until_ready(ranks(x, 1.0))
    jax.effects_barrier()
    assert len(seen) > 50 and all(seen)


@pytest.mark.parametrize("rng", ["jax", "philox"])
def test_sums_and_products(rng):
    rows, d, num_samples = 2, 90, 300
    shapes = {"x": (rows, d), "w": (1, 1, num_samples), "g": (1, 1, rows, d), "t": (1, 1, rows * d)}
    of = {name: normal(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}
    for name, operand in (("op_sum", of["w"]), ("op_dot", of["g"])):
        ours, reference = _both(name, "ranking", d, num_samples, rng)
        assert_relatively_close(ours(of["x"], 0.4, operand), reference(of["x"], 0.4, operand))
    ours, _ = _both("samples_and_dot", "ranking", d, num_samples, rng)
    codes, dot = ours(of["x"], 0.4, of["t"])
    assert_bit_equal(codes, _both("samples", "ranking", d, num_samples, rng)[1](of["x"], 0.4))
    stream = STREAMS[rng](d)
    words = words_of(stream, KEY, 1, num_samples)
    of_score = dict(noise="gumbel", order=1, power=0, stream=stream)
    assert_relatively_close(dot, quick(xla_score.score_dot, words, of["t"], **of_score))


def test_sums_do_not_depend_on_the_number_of_programs():
    d, num_samples = 65, 120
    x, w = normal(3, 2, d), normal(4, 1, 1, num_samples)

    def sums():
        return _both("op_sum", "ranking", d, num_samples)[0](x, 0.3, w)

    expected = sums()
    for programs in (1, 8):
        with tuned(kernel_whole_programs=programs):
            assert_bit_equal(sums(), expected)
