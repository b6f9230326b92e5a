"""What several files share: comparisons, and settings for compiling and tuning."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturbk.implementations import IMPLEMENTATIONS
from perturbk.kernels.machine import PLAIN
from perturbk.kernels.tuning import TUNING

# Triton does not compile for it: test_triton.py has an interpreter.
ON_A_CPU = tuple(name for name in IMPLEMENTATIONS if name != "triton")

# Without LLVM's optimisations a program compiles in a third of the time, and with what came before
# the fusion emitters, as long as there was a choice. For tests in which compiling is all the work;
# the others, and the benchmarks, see what users see.
_QUICK: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    _QUICK["xla_cpu_use_fusion_emitters"] = False
quick_jit = functools.partial(jax.jit, compiler_options=_QUICK)


def quick(f, /, *operands, **params):
    """f(*operands, **params), compiled as one: operation by operation takes as long for each."""
    return quick_jit(functools.partial(f, **params))(*operands)


def words_of(stream, key: jax.Array, groups: int, num_samples: int, leaf: int = 0) -> jax.Array:
    """A stream's words of a leaf for so many keys: uint32 [groups, words_per_sample, N]."""
    keys = jax.random.split(key, groups)
    return quick(jax.vmap(lambda key: stream.words(key, num_samples, leaf)), keys)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Float32; by numpy, which compiles nothing."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _crooked_log2(a: jax.Array) -> jax.Array:
    """A binary logarithm that errs as far as a machine's may, to either side."""
    log = jnp.log2(a)
    up = jax.lax.bitcast_convert_type(a, jnp.int32) * 40503 >> 7 & 1 == 0
    return log + jnp.where(up, 1.0, -1.0) * 2.0**-22 * jnp.maximum(1, jnp.abs(log))


def _crooked_cos_sin(turn: jax.Array) -> tuple[jax.Array, jax.Array]:
    up = jnp.where(turn * np.uint32(40503) >> 7 & 1 == 0, 2.0**-20, -(2.0**-20))
    return tuple(a + up for a in PLAIN.cos_sin(turn))


CROOKED = dataclasses.replace(
    PLAIN,
    log=lambda a: _crooked_log2(a) * np.float32(np.log(2)),
    log2=_crooked_log2,
    sqrt=lambda a: jnp.sqrt(a) * np.float32(1 + 2.0**-22),
    cos_sin=_crooked_cos_sin,
)


def _pairs(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        yield np.asarray(a), np.asarray(e)


def assert_rounding_apart(actual, expected):
    """Counts of winners and sums of ranks are exact integers: only the division is rounded."""
    for a, e in _pairs(actual, expected):
        np.testing.assert_array_max_ulp(a, e, 1)


def assert_bit_equal(actual, expected):
    for a, e in _pairs(actual, expected):
        np.testing.assert_array_equal(a, e)


def assert_relatively_close(actual, expected, rel=1e-5):
    """Each entry to `rel` of the largest of its leaf, for sums cancel in the small ones.

    Where all of a leaf cancels, to `rel` of one.
    """
    for a, e in _pairs(actual, expected):
        np.testing.assert_allclose(a, e, rtol=rel, atol=rel * (np.max(np.abs(e)) or 1))


@contextlib.contextmanager
def fresh_caches():
    """What is compiled within was compiled within, and is forgotten behind."""
    jax.clear_caches()
    try:
        yield
    finally:
        jax.clear_caches()


@contextlib.contextmanager
def tuned(**numbers):
    """Other tuning numbers, for all modules."""
    before = {name: getattr(TUNING, name) for name in numbers}
    try:
        with fresh_caches():
            for name, value in numbers.items():
                object.__setattr__(TUNING, name, value)
            yield
    finally:
        for name, value in before.items():
            object.__setattr__(TUNING, name, value)
