"""Operands of the TPU's kernels, by the path that they take, and their results with XLA's."""

from __future__ import annotations

import numpy as np

from checks import quick
from perturbk.kernels import tpu_ops, tpu_score, xla, xla_score

# (groups, shared, rows, d, num_samples, inner): by the path through kernels/tpu_cut.py.
SHAPES = {
    "few-samples": (2, 1, 3, 5, 100, 3),
    "one-coordinate": (1, 1, 2, 1, 130, 1),
    "whole-vectors": (1, 2, 1, 19, 1000, 1),
    "straddling-vectors": (3, 1, 1, 9, 1100, 1),
    "many-samples": (1, 1, 1, 3, 5000, 1),
}
WIDE = {
    "segments": (1, 1, 1, 1000, 130, 1),
    "pieces": (1, 1, 1, 1100, 1000, 1),
}


def operands_of(shape, *, sigma="scalar", seed=0):
    """(keys, x, sigma, weights, cotangent) with ties and infinities in x."""
    groups, shared, rows, d, num_samples, _ = shape
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=(groups, shared, rows, d)), 1)
    x[..., d // 2 :: 3] = -np.inf
    scale = {"scalar": np.full((groups, shared, 1, 1), 0.5), "array": rng.uniform(0.1, 1, x.shape)}
    return (
        rng.integers(0, 1 << 32, (groups, 2, num_samples), dtype=np.uint32),
        x.astype(np.float32),
        scale[sigma].astype(np.float32),
        rng.normal(size=(groups, shared, num_samples)).astype(np.float32),
        rng.normal(size=x.shape).astype(np.float32),
    )


def both(name: str, *operands, **static):
    """(result of the TPU's kernel of that name, of XLA's)."""
    ours, plain = (tpu_score, xla_score) if name.startswith("score") else (tpu_ops, xla)
    return (
        quick(getattr(ours, name), *operands, platform="cpu", **static),
        quick(getattr(plain, name), *operands, **static),
    )


def assert_close(got, want):
    """Equal up to the order of summation: a few units in the last place of the largest."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=4e-6 * float(np.abs(want).max()))
