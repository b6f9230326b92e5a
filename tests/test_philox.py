"""The stream `rng="philox"`: its words, its variates, and its tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import perturbk
from perturbk.kernels import pallas, philox

KEY = jax.random.key(5)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter, key, expected):
    """`kat_vectors` of Random123."""
    words = philox.philox4x32(*jnp.uint32(key), tuple(jnp.uint32(counter)))
    assert [f"{int(w):08x}" for w in words] == expected.split()


def test_product_by_halves():
    """That of a GPU whose lowering has no other."""
    a = jax.random.bits(KEY, (1000,), jnp.uint32).at[:3].set(jnp.uint32([0, 1, 0xFFFFFFFF]))
    for b in (0, 1, 0xFFFF, 0x10000, 0xD2511F53, 0xFFFFFFFF):
        high, low = pallas.machine("rocm").product(a, np.uint32(b))
        product = np.asarray(a, np.uint64) * np.uint64(b)
        np.testing.assert_array_equal(high, product >> np.uint64(32))
        np.testing.assert_array_equal(low, product & np.uint64(0xFFFFFFFF))


def _exponentials(bits: np.ndarray) -> np.ndarray:
    drawn = philox.log2_rest(jnp.asarray(bits, jnp.uint32))
    return -np.log(2) * np.asarray(drawn, np.float64)


def test_exponential_to_the_last_bit_of_the_word():
    """Relative to float64, where a uniform of 23 bits would give multiples of 2^-23."""
    edges = [0, 1, 2, 3, 1 << 20, (1 << 27) - 1, 1 << 27, 1 << 31, (1 << 32) - 2, (1 << 32) - 1]
    bits = np.concatenate([edges, np.random.default_rng(0).integers(0, 1 << 32, 10000)])
    found, exact = _exponentials(bits), -np.log1p(-(bits + 0.5) / 2.0**32)
    # v has 24 bits before 1 - v = exp(-E), within its last; below 1/32 nothing is lost.
    assert np.all(np.abs(found - exact) <= 2.0**-23 * np.exp(exact) + 4e-7 * exact)
    assert np.all((found > 0) & (found < 17))


def test_variates_to_rounding():
    """As float32 has them at 16; of the lowest, those next to a uniform of one, as it has that."""
    bits = np.concatenate([np.arange(100), np.random.default_rng(0).integers(0, 1 << 32, 10000)])
    z = philox.NOISES["gumbel"].math().variate(philox.log2_rest(jnp.asarray(bits, jnp.uint32)))
    exact = -np.log(-np.log1p(-(bits + 0.5) / 2.0**32))
    error = np.abs(np.asarray(z, np.float64) - exact)
    assert np.all(error <= 2.0**-19 + 2.0**-24 * np.exp(np.exp(-exact)))


def test_radius_in_the_tail():
    bits = np.arange(1000) ** 3
    found = np.asarray(philox.radius(jnp.asarray(bits, jnp.uint32)), np.float64)
    exact = np.sqrt(-2 * np.log((bits + 0.5) / 2.0**32))
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    assert 6.7 < found[0] < 6.8 and 0 < philox.radius(jnp.uint32(0xFFFFFFFF)) < 1e-3


def test_cosine_and_sine():
    bits = np.random.default_rng(1).integers(0, 1 << 32, 10000)
    bits[:8] = np.arange(8) << 29
    cos, sin = philox.cos_sin_of_turns(jnp.asarray(bits, jnp.uint32))
    np.testing.assert_allclose(cos, np.cos(2 * np.pi * bits / 2.0**32), atol=2e-7)
    np.testing.assert_allclose(sin, np.sin(2 * np.pi * bits / 2.0**32), atol=2e-7)


def test_rare_winners():
    """Winners 10 to 12 nats down win as often as they should, and each as often as the others."""
    x = jnp.full(64, -18.0).at[0].set(0.0)
    f = perturbk.make_perturbed_fun(
        perturbk.argmax_one_hot, num_samples=1 << 19, sigma=1.0, rng="philox"
    )
    runs = [f(k, jnp.where(x < 0, -10.0 - i, x)) for i, k in enumerate(jax.random.split(KEY, 3))]
    for i, p in enumerate(runs):
        weight = 63 * np.exp(-10.0 - i)
        expected = (1 << 19) * weight / (1 + weight)
        count = float(1 - p[0]) * (1 << 19)
        assert abs(count - expected) < 5 * np.sqrt(expected)
        chi = np.sum((np.asarray(p[1:]) * (1 << 19) - expected / 63) ** 2 / (expected / 63))
        assert chi < stats.chi2.ppf(1 - 1e-5, 63)


def test_tail_of_the_race():
    """As many words as there should be are 18 nats down: 65; of 23 bits it is none or 512 alike."""
    exponentials = _exponentials(np.arange(1000))
    below = exponentials < np.exp(-18.0)
    assert below.sum() == int(2.0**32 * np.exp(-18.0) + 0.5) == 65
    assert np.all(below[:65])
    assert -np.log(exponentials[0]) > 22


def test_a_tpu_has_no_kernel_for_it():
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, rng="philox")
    (leaf,) = perturbk.explain(f, jnp.zeros(5), platform="tpu").leaves
    assert leaf.implementation == "xla" and "multiply" in leaf.reason
    named = perturbk.make_perturbed_fun(
        perturbk.argmax_one_hot, implementation="pallas", rng="philox"
    )
    traced = jax.jit(named).trace(KEY, jnp.zeros(5))
    with pytest.raises(NotImplementedError, match="on a TPU its kernels draw by Threefry"):
        traced.lower(lowering_platforms=("tpu",))
