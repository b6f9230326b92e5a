"""What perturbed optimisers get wrong: ties, infinities, NaN, rare winners, uniforms of 0 and 1."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import oracles
import perturbk
from checks import (
    assert_bit_equal,
    assert_relatively_close,
    assert_rounding_apart,
    fresh_caches,
    quick_jit,
)
from perturbk.kernels import topk
from perturbk.kernels.argmax import first_max
from perturbk.kernels.noise import NOISES
from perturbk.kernels.ranking import SORT_KEYS, ranks
from perturbk.kernels.threefry import element_bits
from perturbk.kernels.topk import largest, total_order

INF, NAN = np.inf, np.nan
SPECIAL = np.array(
    [
        [1, 1, 0, 1, 1],
        [0, -0.0, 0, -0.0, 0],
        [-INF, 0, -INF, 0.2, -INF],
        [-INF, -INF, -INF, -INF, -INF],
        [INF, 0, INF, -INF, 0],
        [0, NAN, 1, NAN, -INF],
        [NAN, NAN, NAN, NAN, NAN],
        [NAN, INF, -INF, 0, 1],
        [-INF, -NAN, NAN, -NAN, -INF],
    ],
    np.float32,
)
OPS = {
    "argmax": (perturbk.argmax_one_hot, oracles.argmax_one_hot),
    "ranking": (perturbk.ranking, oracles.ranks),
    "top_k": (lambda x: perturbk.top_k(x, 2), functools.partial(oracles.top_k, k=2)),
    "top_k_indices": (
        lambda x: lax.top_k(x, 3)[1],
        functools.partial(oracles.top_k, k=3, indices=True),
    ),
}


@pytest.mark.parametrize("sigma", [1e-30, 0.5], ids=["exact_ties", "noise"])
@pytest.mark.parametrize("op", OPS)
def test_special_values(op, sigma, implementation):
    fun, in_numpy = OPS[op]
    key = jax.random.key(1)
    f = perturbk.make_perturbed_fun(fun, 30, sigma, implementation=implementation)
    z = oracles.draw("Gumbel", key, SPECIAL.shape, 30).astype(np.float32)
    expected = np.mean(in_numpy(SPECIAL + np.float32(sigma) * z), 0)
    found = quick_jit(f)(key, SPECIAL)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if op == "argmax":
        masked = np.isneginf(SPECIAL) & ~np.isneginf(SPECIAL).all(-1, keepdims=True)
        assert masked.any() and not np.asarray(found)[masked].any()


@pytest.mark.parametrize("d", [60, 100, 1000])
def test_a_nan_wins_in_long_rows(d, implementation):
    """XLA on a CPU vectorises a maximum of so many values, and passes over NaN."""
    x = jax.random.normal(jax.random.key(0), (2, d)).at[0, d // 2 :: 7].set(NAN)
    f = perturbk.make_perturbed_fun(
        perturbk.argmax_one_hot, 100, 0.5, implementation=implementation
    )
    found = jax.jit(f)(jax.random.key(1), x)
    assert found[0, d // 2] == 1 and np.isfinite(found).all()
    over_sigma = jax.jit(lambda s: f(jax.random.key(1), x[1] * s)[0])  # NaN reaches x traced
    assert over_sigma(np.float32(NAN)) == 1


@pytest.mark.parametrize("op", OPS)
def test_masked_entries_leave_finite_gradients(op, implementation):
    x = np.array([-INF, 0.1, 0.3, -INF, 0.2], np.float32)
    f = perturbk.make_perturbed_fun(OPS[op][0], 50, implementation=implementation)
    jacobian = quick_jit(jax.jacrev(f, 1))(jax.random.key(1), x)
    assert np.isfinite(jacobian).all() and np.any(jacobian)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_first_maximum_is_that_of_argmax(axis):
    x = np.random.default_rng(0).choice([0.0, -0.0, 1, INF, -INF, NAN], (50, 7)).astype(np.float32)
    np.testing.assert_array_equal(first_max(jnp.asarray(x), axis), np.argmax(x, axis))


@pytest.mark.parametrize("d", [1, 7, 256, 300])  # 256 and below by counting, above by sorting
def test_ranks_are_stable(d):
    x = np.random.default_rng(0).choice([0.0, -0.0, 1, -1, INF, -INF, NAN], (d, 9))
    key = SORT_KEYS["ranking"](jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(jax.jit(ranks)(key), oracles.ranks(x.T).T)


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("group", [1, 4, 10, 16])
def test_largest_are_those_of_top_k(k, group):
    special = np.array([0, -0.0, 1, -1, INF, -INF, NAN, -NAN], np.float32)
    x = np.random.default_rng(0).choice(special, (50, 10))
    x[0].view(np.int32)[:] = -1  # NaN, the last in the total order
    keys = total_order(jnp.asarray(x.T))
    expected = oracles.top_k(x, k, indices=True)
    np.testing.assert_array_equal(lax.top_k(x, k)[1], expected)
    for found in (largest(keys, k, group), topk._by_rows(keys, k)):
        np.testing.assert_array_equal(found.T, expected)


@pytest.mark.parametrize("sigma", [1e-9, 1e-30])
def test_sigma_that_is_zero_in_float16(sigma, implementation):
    x = np.array([-6e4, 6e4, 6e4, 0], np.float16)
    f = perturbk.make_perturbed_fun(
        perturbk.argmax_one_hot, 10, sigma, implementation=implementation
    )
    key = jax.random.key(0)
    value, gradient = quick_jit(jax.value_and_grad(lambda x: f(key, x)[1]))(x)
    assert value == 1 and not np.any(gradient)


@pytest.mark.parametrize("num_samples", [1, 2, 127, 129])
def test_few_and_ragged_samples(num_samples, implementation):
    x = np.linspace(-0.2, 0.3, 6, dtype=np.float32)

    def results(make, **options):
        f = make(
            lambda x: (perturbk.argmax_one_hot(x), perturbk.ranking(x)), num_samples, 0.3, **options
        )

        def loss(x):
            value = f(jax.random.key(5), x)
            return jnp.vdot(value[0], x) + jnp.vdot(value[1], x), value

        gradient, value = quick_jit(jax.grad(loss, has_aux=True))(x)
        return value, gradient

    found = results(perturbk.make_perturbed_fun, implementation=implementation)
    expected = results(optax.perturbations.make_perturbed_fun)
    assert_rounding_apart(found[0], expected[0])
    assert_relatively_close(found[1], expected[1])


@pytest.mark.parametrize("op", OPS)
def test_same_key_twice_is_bit_equal(op, implementation):
    x = np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32)
    f = perturbk.make_perturbed_fun(OPS[op][0], 300, implementation=implementation)
    run = quick_jit(lambda key: (f(key, x), jax.grad(lambda x: jnp.sum(f(key, x) ** 2))(x)))
    first = run(jax.random.key(5))
    assert_bit_equal(run(jax.random.key(5)), first)
    assert_bit_equal(f(jax.random.key(5), x), first[0])
    assert np.any(run(jax.random.key(6))[0] != first[0])


def test_rare_winners_are_as_rare_as_they_should_be(implementation):
    """A head 12 nats above 64 others. At 18 the 23 bits of jax.random themselves end."""
    num_samples, x = 100_000, np.zeros(65, np.float32)
    x[17] = 12
    f = perturbk.make_perturbed_fun(
        perturbk.argmax_one_hot, num_samples, 1.0, implementation=implementation
    )
    lost = num_samples * (1 - float(jax.jit(f)(jax.random.key(0), x)[17]))
    expected = num_samples * (1 - oracles.softmax(x, 1.0)[17])
    assert expected > 30 and abs(lost - expected) < 6 * np.sqrt(expected)


@pytest.mark.parametrize("noise", NOISES)
def test_tails_of_the_noise_are_whole(noise):
    """All 2^23 variates: no more than a lattice step from the distribution, in both tails."""
    bits = lax.iota(jnp.uint32, 1 << 23) << np.uint32(9)
    z = np.sort(np.asarray(jax.jit(NOISES[noise]().variate)(bits)), kind="stable")
    thresholds = np.linspace(z[0], z[-1], 500, dtype=np.float32)[1:-1].astype(np.float64)
    below = np.searchsorted(z, thresholds) / 2.0**23
    if noise == "gumbel":
        exact = np.exp(-np.exp(-thresholds))
    else:
        exact = oracles.stats.norm.cdf(thresholds)
    # Two steps: the uniforms are multiples of 2^-23 (for Normal with an offset), and z rounds.
    assert np.max(np.abs(below - exact)) < 2 * 2.0**-23


# The key whose sample 811 draws a uniform of 0 for element 4 of 8: 1 in 8 million.
ZERO_KEY, ZERO_SAMPLE, ZERO_ELEMENT = 1763, 811, 4


def uniform_of_zero(noise, implementation):
    """Value and gradient where a uniform is 0, ours and optax's."""
    x = np.linspace(0, 1, 8, dtype=np.float32)

    def results(make, **options):
        f = make(perturbk.argmax_one_hot, 1000, 0.5, getattr(perturbk, noise)(), **options)
        key = jax.random.key(ZERO_KEY)
        return quick_jit(lambda x: (f(key, x), jax.jacrev(f, 1)(key, x)))(x)

    found = results(perturbk.make_perturbed_fun, implementation=implementation)
    return found, results(optax.perturbations.make_perturbed_fun)


def test_the_key_draws_a_uniform_of_zero():
    sample_key = jax.random.split(jax.random.key(ZERO_KEY), 1000)[ZERO_SAMPLE]
    words = jax.random.key_data(jax.random.split(sample_key, 1)[0])
    assert element_bits(*words, jnp.uint32(ZERO_ELEMENT)) < 1 << 9


@pytest.mark.parametrize("noise", ["Gumbel", "Normal"])
def test_a_uniform_of_zero_is_harmless(noise, implementation):
    assert_relatively_close(*uniform_of_zero(noise, implementation))


def _unclamped(noise):
    """The same noise without its lower limit on the uniform."""

    def exponential(bits):
        unit = lax.bitcast_convert_type((bits >> 9) | np.uint32(0x3F800000), jnp.float32) - 1
        return -jnp.log(unit)

    def normal(bits):
        unit = lax.bitcast_convert_type((bits >> 9) | np.uint32(0x3F800000), jnp.float32) - 1
        return np.float32(np.sqrt(2)) * lax.erf_inv(2 * unit - 1)

    if noise == "normal":
        moments = dict(moment=lambda bits, order, power: normal(bits), quick_moments=None)
        return dict(variate=normal, near=None, **moments)
    return dict(
        variate=lambda bits: -jnp.log(exponential(bits)),
        moment=lambda bits, order, power: 1 - exponential(bits),
        quick_moments=None,
    )


@pytest.mark.parametrize("noise", ["Gumbel", "Normal"])
def test_an_unclamped_uniform_is_caught(noise, implementation, monkeypatch):
    name = noise.lower()
    sabotaged = dataclasses.replace(NOISES[name](), **_unclamped(name))
    monkeypatch.setitem(NOISES, name, lambda machine: sabotaged)
    with fresh_caches():
        found, expected = uniform_of_zero(noise, implementation)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_relatively_close(found, expected)
