"""The race of the GPU's kernels of winners: whatever it proves is true, and it rarely fails to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checks import CROOKED, normal, quick_jit, tuned, words_of
from perturbk.kernels import noise, pallas_launch, pallas_ops, pallas_race, philox, xla
from perturbk.kernels.machine import PLAIN
from perturbk.kernels.streams import STREAMS
from perturbk.kernels.tuning import TUNING


@pytest.fixture
def undecided(monkeypatch):
    """Instead of comparing exactly, leaves samples with no winner; returns whether it did."""
    monkeypatch.setattr(pallas_launch, "machine", lambda platform: CROOKED)
    race = pallas_race.Race.winners

    def winners(self, row, exactly, tangent_ref=None):
        del exactly
        nothing = (jnp.full((1, row.lanes), -1, jnp.int32),) * self.k
        return race(self, row, lambda: nothing, tangent_ref)

    monkeypatch.setattr(pallas_race.Race, "winners", winners)
    return lambda winners: winners == np.array(-1).astype(winners.dtype)


def _races(d, num_samples, rng="jax", op="argmax", noise_="gumbel"):
    """(kernel, XLA), each from rows x [rows, d] and sigma to codes [rows, ..., num_samples]."""
    stream = STREAMS[rng](d)
    words = words_of(stream, jax.random.key(5), 1, num_samples)
    params = dict(op=op, noise=noise_, inner=1, stream=stream)

    def winners(samples, x, sigma):
        sigma = jnp.full((1, 1, 1, 1), sigma, jnp.float32)
        return samples(words, x[None, None], sigma, **params)[0, 0]

    raced = functools.partial(pallas_ops.samples, platform="cpu")
    return tuple(quick_jit(functools.partial(winners, samples)) for samples in (raced, xla.samples))


_RACED = [
    ("argmax", 24, 1.0, 0.0),
    ("argmax", 101, 0.5, 1.0),
    ("argmax", 1000, 0.1, 3.0),
    ("argmax", 1000, 0.01, 1.0),
    ("argmax", 600, 1.0, 0.0),
    ("top_k_3", 101, 0.5, 1.0),
    ("top_k_3", 1000, 0.1, 3.0),
    ("top_k_indices_8", 300, 1.0, 0.5),
    ("top_k_indices_8", 600, 1.0, 0.5),
]


@pytest.mark.parametrize(
    ("rng", "op", "d", "sigma", "spread"),
    [
        *((rng, *row) for rng in ("jax", "philox") for row in _RACED),
        ("threefry_pair", "argmax", 1000, 0.1, 3.0),
        ("threefry_pair", "top_k_3", 101, 0.5, 1.0),
    ],
)
def test_proved_winners_are_exact(rng, op, d, sigma, spread, undecided):
    x = np.float32(spread) * normal(1, 2, d)
    x[:, 1::7], x[:, 2::7] = -np.inf, -1e9  # as masks are made
    raced, exact = (np.asarray(race(x, sigma)) for race in _races(d, 2000, rng, op))
    open_ = undecided(raced)
    np.testing.assert_array_equal(raced[~open_], exact[~open_])
    assert open_.mean() < 1e-3


@pytest.mark.parametrize("rng", ["jax", "philox"])
@pytest.mark.parametrize(
    ("op", "d", "sigma", "spread"),
    [
        ("argmax", 24, 1.0, 0.0),
        ("argmax", 101, 0.01, 1.0),
        ("argmax", 1000, 0.1, 3.0),
        ("top_k_3", 101, 0.5, 1.0),
        ("top_k_indices_8", 300, 1.0, 0.5),
    ],
)
def test_proved_winners_of_normal_noise_are_exact(op, d, sigma, spread, rng, undecided):
    """As the same machine, whose logarithms are crooked, makes it with no race."""
    x = np.float32(spread) * normal(1, 2, d)
    x[:, 1::7], x[:, 2::7] = -np.inf, -1e9
    raced = np.asarray(_races(d, 2000, rng, op, "normal")[0](x, sigma))
    with tuned(race_least=d + 1):
        exact = np.asarray(_races(d, 2000, rng, op, "normal")[0](x, sigma))
    open_ = undecided(raced)
    np.testing.assert_array_equal(raced[~open_], exact[~open_])
    assert open_.mean() < 1e-3


def test_normal_variates_that_are_not_near_are_caught(undecided, monkeypatch):
    normal_math = noise.NOISES["normal"]()

    def rough(words, machine):
        near = normal_math.near(words, machine)
        less = (1 - (bits >> 9 & 1).astype(jnp.float32) / 64 for bits in words)
        return tuple((a * factor, b) for factor, (a, b) in zip(less, near, strict=True))

    sabotaged = dataclasses.replace(normal_math, near=rough)
    monkeypatch.setitem(noise.NOISES, "normal", lambda machine: sabotaged)
    races = _races(1000, 4000, noise_="normal")
    raced, exact = (np.asarray(race(jnp.zeros((1, 1000)), 1)) for race in races)
    decided = ~undecided(raced)
    assert np.any(raced[decided] != exact[decided])


def test_a_race_without_bounds_is_caught(undecided, monkeypatch):
    """Numbers that are below u prove what is false."""

    def below(bits):
        return jnp.floor(noise._unit(bits) * 2.0**12) * np.float32(2.0**-12)

    gumbel = dataclasses.replace(noise.NOISES["gumbel"](), above=below)
    monkeypatch.setitem(noise.NOISES, "gumbel", lambda machine: gumbel)
    monkeypatch.setattr(pallas_launch, "machine", lambda platform: PLAIN)
    raced, exact = (np.asarray(race(jnp.zeros((1, 1000)), 1)) for race in _races(1000, 20_000))
    decided = ~undecided(raced)
    assert np.any(raced[decided] != exact[decided])


@pytest.mark.parametrize("noise_", ["gumbel", "normal"])
def test_what_cannot_be_raced_is_compared(noise_, undecided):
    race, _ = _races(64, 128, noise_=noise_)
    x = np.zeros((5, 64), np.float32)
    x[:3, 5], x[3] = [np.nan, np.inf, 1e30], -np.inf
    compared = np.all(undecided(race(x, 1e-30)), -1)
    in_sigmas = noise_ == "gumbel"  # a scale on which 1e30 is infinite
    np.testing.assert_array_equal(compared, [True, True, in_sigmas, True, False])
    for sigma in (0, -1, np.nan, np.inf):
        assert np.all(undecided(race(x, sigma))), sigma


@pytest.mark.parametrize("noise_", ["gumbel", "normal"])
def test_in_doubt_all_are_compared(noise_):
    """The same, with the comparison in place, at a sigma so small that nothing is proved."""
    x = normal(0, 3, 100)
    x[1, 7], x[2] = np.nan, 1
    raced, exact = (race(x, 1e-9) for race in _races(100, 300, noise_=noise_))
    np.testing.assert_array_equal(raced, exact)


@pytest.mark.parametrize("k", [1, 3])
def test_short_rows_and_scales_of_their_own_are_not_raced(k):
    def raced(d, scales=1, noise_="gumbel"):
        rows = jnp.zeros((1, 1, 1, d)), jnp.ones((1, 1, 1, scales))
        return pallas_race.aid(noise.NOISES[noise_](), *rows, 1, k) is not None

    least = max(TUNING.race_least, TUNING.race_least_for_each * k)
    assert raced(least)
    assert not raced(least - 1)
    assert not raced(64, scales=64)
    assert raced(64, noise_="normal")


@pytest.mark.parametrize("rng", ["jax", "philox"])
def test_bounds(rng):
    """For every one of the 2^23 uniforms: above u, and so is the worst of quick logarithms."""
    mantissa = np.arange(1 << 23, dtype=np.uint32)
    if rng == "jax":
        bits = mantissa << 9
        u = mantissa / 2.0**23
        above = noise.NOISES["gumbel"]().above(jnp.asarray(bits))
    else:
        bits = mantissa << 9 | 511 * (mantissa & 1)  # either end of what is rounded down
        u = 1 - (bits + 0.5) / 2.0**32
        above = philox.NOISES["gumbel"].math().above(jnp.asarray(bits))
    above = np.asarray(above, np.float64)
    assert np.all((u + 2.0**-22 <= above) & (above <= u + 2.0**-21))
    log = np.log2(above)
    log -= 2.0**-22 * np.maximum(1, np.abs(log))
    assert np.all(log >= np.log2(u, where=u > 0, out=np.full(u.shape, -np.inf)))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("rng", ["jax", "philox"])
def test_quick_moments(rng, order):
    """Of the same bits, within 2^-21 of those of the noise, or relatively where they are large."""
    bits = np.random.default_rng(0).integers(0, 2**32, 1 << 18, dtype=np.uint32)
    bits = jnp.asarray(np.concatenate([bits, [0, 1, 511, 512, 2**32 - 512, 2**32 - 1]]), jnp.uint32)
    math = STREAMS[rng](1).math("gumbel")
    drawn = bits if rng == "jax" else philox.log2_rest(bits)
    moment, (quick,) = math.moment(drawn, order, 0), math.quick_moments(order)((bits,), CROOKED)
    np.testing.assert_allclose(quick, moment, rtol=2.0**-21, atol=2.0**-21)


def test_near_normals():
    """For every one of the 2^23 uniforms."""
    bits = jnp.arange(1 << 23, dtype=jnp.uint32) << 9
    math = noise.NOISES["normal"]()
    near = quick_jit(lambda bits: jnp.multiply(*math.near((bits,), CROOKED)[0]))(bits)
    errors = np.abs(near - quick_jit(math.variate)(bits))
    assert np.max(errors) < noise.NEAR and np.mean(errors) < 2.0**-20
    some = bits[:: 1 << 12]
    for order in (1, 2):
        (quick,) = math.quick_moments(order)((some,), CROOKED)
        np.testing.assert_allclose(quick, math.moment(some, order, 0), atol=noise.NEAR)


def test_near_normals_of_pairs():
    edges = [0, 1, 2**30, 2**31, 2**32 - 1]
    pairs = np.random.default_rng(0).integers(0, 2**32, (2, 1 << 20), dtype=np.uint32)
    pairs[:, :25] = np.stack(np.meshgrid(edges, edges)).reshape(2, -1)
    math = STREAMS["philox"](4).math("normal")
    words = (*jnp.asarray(pairs), *jnp.asarray(pairs[:, ::-1]))
    near = quick_jit(lambda words: math.near(words, CROOKED))(words)
    exact = quick_jit(lambda words: philox.NOISES["normal"].four(words, CROOKED))(words)
    for factors, z in zip(near, exact, strict=True):
        assert np.max(np.abs(np.multiply(*factors) - z)) < noise.NEAR
    for order in (1, 2):
        quick = math.quick_moments(order)(words, CROOKED)
        for a, b in zip(quick, exact, strict=True):
            np.testing.assert_allclose(a, math.moment(b, order, 0), atol=noise.NEAR)
