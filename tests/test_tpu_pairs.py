"""The TPU's kernels with `rng="threefry_pair"`, interpreted: bit-equal with the XLA kernels.

tests/test_streams.py compares those with the reference.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbk.kernels import tpu_score
from perturbk.kernels.streams import Philox, ThreefryPair
from tpu_operands import assert_close, both, operands_of

# (groups, shared, shape of the leaf, axis, num_samples): by how the cells lie in the rows.
LEAVES = {
    "odd rows": (2, 1, (3, 5), 1, 130),
    "one word of each cell": (1, 1, (5, 3), 0, 130),
    "rows of one": (1, 1, (5, 1), 0, 130),
    "middle axis": (1, 2, (2, 3, 5), 1, 1000),
    "odd segments": (1, 1, (1005,), 0, 130),
    "odd pieces": (1, 1, (1101,), 0, 1000),
}


def _operands(leaf):
    """(operands of `operands_of`, inner, stream)."""
    groups, shared, shape, axis, num_samples = leaf
    d, inner = shape[axis], math.prod(shape[axis + 1 :])
    operands = operands_of((groups, shared, math.prod(shape) // d, d, num_samples, inner))
    return operands, inner, ThreefryPair(shape[-1])


@pytest.mark.parametrize(
    "name, op, noise",
    [*((name, "argmax", "gumbel") for name in LEAVES), ("odd segments", "top_k_1", "normal")],
)
def test_winners(name, op, noise):
    operands, inner, stream = _operands(LEAVES[name])
    static = dict(op=op, noise=noise, inner=inner, stream=stream)
    np.testing.assert_array_equal(*both("samples", *operands[:3], **static))


def test_ranks():
    operands, inner, stream = _operands(LEAVES["odd rows"])
    static = dict(op="ranking", noise="gumbel", inner=inner, stream=stream)
    np.testing.assert_array_equal(*both("samples", *operands[:3], **static))
    assert_close(*both("op_sum", *operands[:4], **static))


@pytest.mark.parametrize("name", ["odd rows", "rows of one", "odd segments", "odd pieces"])
def test_scores(name):
    (keys, x, _, weights, v), _, stream = _operands(LEAVES[name])
    v = v.reshape(*x.shape[:2], -1)
    which = dict(noise="gumbel", order=1, power=1, stream=stream)
    assert_close(*both("score_dot", keys, v, **which))
    which["size"] = v.shape[-1]
    assert_close(*both("score_sum", keys, weights, **which))


def test_kernels_refuse_other_streams():
    keys = jax.random.bits(jax.random.key(0), (1, 4, 130), jnp.uint32)
    with pytest.raises(NotImplementedError, match=r"cannot draw by Philox\(last=5\)"):
        tpu_score.score_dot(
            keys, jnp.ones((1, 1, 5)), noise="gumbel", order=1, power=0, platform="cpu",
            stream=Philox(5),
        )  # fmt: skip
