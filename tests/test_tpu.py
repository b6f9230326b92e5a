"""The TPU's kernels, interpreted on a CPU: bit-equal winners and ranks with the XLA kernels.

tests/test_tpu_compile.py compiles them with the real compiler, where libtpu is installed.
"""

from __future__ import annotations

import numpy as np
import pytest

from checks import quick
from perturbk.kernels import topk, xla
from perturbk.kernels.ops import OPS
from tpu_operands import SHAPES, WIDE, assert_close, both, operands_of


@pytest.mark.parametrize("shape", [*SHAPES.values(), *WIDE.values()], ids=[*SHAPES, *WIDE])
@pytest.mark.parametrize("sigma, noise", [("scalar", "normal"), ("array", "gumbel")])
def test_winners(shape, noise, sigma):
    operands = operands_of(shape, sigma=sigma)[:3]
    static = dict(op="argmax", noise=noise, inner=shape[-1])
    np.testing.assert_array_equal(*both("samples", *operands, **static))


@pytest.mark.parametrize("sigma, name", [("array", "few-samples"), *(("scalar", n) for n in WIDE)])
def test_top_k(name, sigma):
    shape = {**SHAPES, **WIDE}[name]
    operands = operands_of(shape, sigma=sigma)[:3]
    static = dict(op="top_k_5", noise="gumbel", inner=shape[-1])
    np.testing.assert_array_equal(*both("samples", *operands, **static))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1023, 130, 1), (1, 1, 2, 5, 130, 1)])
def test_top_k_before_the_padding(shape):
    """Values below every other: NaN with a sign, in rows that are padded."""
    keys, x, sigma, _, _ = operands_of(shape)
    nan = np.array(0xFFC00000, np.uint32).view(np.float32)
    x[..., 2:] = nan
    operands = keys, x, sigma
    static = dict(op="top_k_5", noise="gumbel", inner=1)
    np.testing.assert_array_equal(*both("samples", *operands, **static))


@pytest.mark.parametrize("op, out", [("top_k_3", 9), ("top_k_indices_3", 3)])
def test_sums_and_products_of_top_k(op, out):
    keys, x, sigma, weights, cotangent = operands_of((2, 2, 3, 9, 130, 1))
    static = dict(op=op, noise="gumbel", inner=1)
    for name, last in (("op_sum", weights), ("op_dot", cotangent[..., :out])):
        assert_close(*both(name, keys, x, sigma, last, **static))


def test_top_k_by_comparison():
    """Sums and products as a TPU takes them."""
    *operands, weights, cotangent = operands_of((2, 2, 3, 9, 130, 1))
    codes = quick(xla.samples, *operands, op="top_k_3", noise="gumbel", inner=1)
    weighted = topk.weighted_by_comparison, topk.weighted
    assert_close(*(quick(lambda *of, f=f: f(*of, 9), codes, weights) for f in weighted))
    dots = topk.dot_by_comparison, topk.dot
    assert_close(*(quick(f, codes, cotangent) for f in dots))


@pytest.mark.parametrize("op", ["argmax", "ranking"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sums_and_products(shape, op):
    *operands, weights, cotangent = operands_of(shape)
    static = dict(op=op, noise="normal", inner=shape[-1])
    for name, last in (("op_sum", weights), ("op_dot", cotangent)):
        assert_close(*both(name, *operands, last, **static))


@pytest.mark.parametrize(
    "shape, noise",
    [
        *((shape, "gumbel") for shape in (*SHAPES.values(), *WIDE.values())),
        (SHAPES["few-samples"], "normal"),
    ],
    ids=[*SHAPES, *WIDE, "normal"],
)
def test_scores(shape, noise):
    keys, x, _, weights, v = operands_of(shape)
    v, size = v.reshape(*x.shape[:2], -1), v[0, 0].size
    which = dict(noise=noise, order=1, power=1)
    assert_close(*both("score_dot", keys, v, **which))
    assert_close(*both("score_sum", keys, weights, size=size, **which))


@pytest.mark.parametrize("op", [*OPS, "top_k_2", "top_k_5", "top_k_indices_3"])
def test_not_a_number(op):
    """A row with NaN in x, or in sigma, next to infinities of both signs."""
    keys, _, _, _, _ = operands_of(shape := (1, 1, 4, 5, 130, 1))
    inf, nan = np.inf, np.nan
    x = [[0, inf, nan, inf, nan], [nan, 0, 0, -inf, inf], [inf, -inf, 0, inf, 1], [-inf] * 5]
    sigma = np.ones((4, 5))
    sigma[3, 2] = nan
    operands = keys, np.array([[x]], np.float32), np.array([[sigma]], np.float32)
    static = dict(op=op, noise="gumbel", inner=shape[-1])
    np.testing.assert_array_equal(*both("samples", *operands, **static))


def test_counters_wrap_as_unsigned():
    """Elements past 2**31 of a leaf, in the last of its rows."""
    inner, d = (1 << 31) // 3, 5
    keys, x, sigma, _, _ = operands_of((1, 1, 2, d, 130, inner))
    static = dict(op="argmax", noise="gumbel", inner=inner)
    np.testing.assert_array_equal(*both("samples", keys, x, sigma, **static))
