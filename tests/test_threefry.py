"""Threefry: published vectors, then the bits and keys of `jax.random`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as jex_random

from perturbk.kernels.threefry import element_bits, leaf_keys, threefry2x32

# Random123, kat_vectors, threefry2x32 with 20 rounds: (counter, key, result).
KNOWN = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_published_vectors(counter, key, result):
    words = threefry2x32(*(jnp.uint32(w) for w in (*key, *counter)))
    assert tuple(map(int, words)) == result


def test_equals_jax_on_random_words():
    words = np.random.default_rng(0).integers(0, 2**32, (2, 1000), dtype=np.uint32)
    key = np.array([0xDEADBEEF, 0x12345678], np.uint32)
    expected = jex_random.threefry_2x32(key, words.ravel()).reshape(2, -1)
    np.testing.assert_array_equal(jnp.stack(threefry2x32(*key, *words)), expected)


@pytest.mark.parametrize("shape", [(1,), (1000,), (7, 3, 11)])
def test_element_bits_are_those_of_jax_random(shape):
    key = jax.random.key(3)
    k0, k1 = jax.random.key_data(key)
    element = jnp.arange(np.prod(shape), dtype=jnp.uint32)
    expected = jax.random.bits(key, shape)
    np.testing.assert_array_equal(element_bits(k0, k1, element), expected.ravel())


@pytest.mark.parametrize("num_samples", [1, 2, 1000])
@pytest.mark.parametrize("num_leaves", [1, 3])
def test_leaf_keys_are_two_splits(num_samples, num_leaves):
    key = jax.random.key(4)
    of_sample = jax.vmap(lambda k: jax.random.split(k, num_leaves))
    expected = jax.random.key_data(of_sample(jax.random.split(key, num_samples)))
    words = jax.random.key_data(key)
    for leaf in range(num_leaves):
        found = leaf_keys(words, num_samples, leaf)
        np.testing.assert_array_equal(found.T, expected[:, leaf])
