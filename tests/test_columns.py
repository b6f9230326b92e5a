"""The assembly that uses shared memory does what the machine's own functions do."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from perturbk.kernels import columns
from perturbk.kernels.machine import PLAIN
from ptx_emulator import Program


@pytest.fixture(params=[32, 64])
def threads(request, monkeypatch):
    program = Program(request.param)
    monkeypatch.setattr(columns, "ptx", program.ptx)
    return request.param


def _permutations(n: int, threads: int) -> list:
    places = np.tile(np.arange(n, dtype=np.int32), (threads, 1))
    places = np.random.default_rng(n).permuted(places, axis=1)
    return [jnp.asarray(place)[None] for place in places.T]


@pytest.mark.parametrize("n", [1, 6, 100])
def test_inverse(n, threads):
    places = _permutations(n, threads)
    found, expected = columns.inverse(places, threads), PLAIN.inverse(places, threads)
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("n", [1, 3, 6, 33, 64, 100, 128])
def test_sums(n, threads, static):
    """Of integers, which are exact in any order."""
    values = np.random.default_rng(0).integers(-99, 99, (3, n, 1, threads)).astype(np.float32)
    width = max(4, 1 << (n - 1).bit_length())
    for of_turn in values:  # the table is used again
        places = range(n) if static else _permutations(n, threads)
        found = columns.sums(places, list(jnp.asarray(of_turn)), width)
        expected = PLAIN.sums(places, list(jnp.asarray(of_turn)), width)
        assert len(found) == len(expected) == -(-width // threads)
        totals = (
            np.concatenate([np.asarray(part).reshape(-1, min(width, threads)).sum(0) for part in a])
            for a in (found, expected)
        )
        np.testing.assert_array_equal(*(total[:n] for total in totals))


@pytest.mark.parametrize(("tile", "lanes"), [(256, 2), (1024, 1)])
def test_exchanged(tile, lanes, threads):
    size = tile * lanes
    random = np.random.default_rng(0)
    for _ in range(2):  # the table is used again
        to, of = (random.permutation(size).astype(np.int32) for _ in range(2))
        words = random.integers(-(2**31), 2**31, size, np.int32)
        memory = np.zeros_like(words)
        memory[to] = words
        found = columns.exchanged(
            *(jnp.asarray(a.reshape(tile, lanes)) for a in (words, to, of)), threads
        )
        np.testing.assert_array_equal(found, memory[of].reshape(tile, lanes))


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_barrier_is_noticed(threads, which, monkeypatch):
    assembly = columns.ptx

    def without(text: str, *args):
        waits = list(re.finditer(r"bar\.[^;]*;", text))
        if waits:
            text = text[: waits[which].start()] + text[waits[which].end() :]
        return assembly(text, *args)

    monkeypatch.setattr(columns, "ptx", without)
    places, values = _permutations(32, threads), [jnp.ones((1, threads))] * 32
    with pytest.raises(RuntimeError, match="does not wait"):
        for _ in range(2):
            columns.sums(places, values, 32)
