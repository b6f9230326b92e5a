"""The fused estimator of one leaf: from per-sample keys to the mean, through the primitives.

The weights W_s = exp(l_s - stop_gradient(l_s)) of the DiCE estimator (Foerster et al. 2018,
arXiv 1802.05098) are one in value and carry every derivative with respect to x and sigma.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from perturbk import one_pass
from perturbk.dice import is_zero
from perturbk.kernels.ops import keeps_codes, op_math
from perturbk.kernels.streams import Stream
from perturbk.primitives import (
    codes_sum_p,
    log_density_p,
    op_sum_p,
    samples_p,
    score_dot_p,
)


def log_density(
    keys, x, sigma, *, noise: str, stream: Stream, implementation: str | None
) -> jax.Array:
    """l_s of one leaf, less its own value: float32 [N], zero, with every derivative.

    keys uint32 [words, N]; x float32 of any shape; sigma float32, scalar or of x's shape.
    """
    flat = x.reshape(1, 1, -1)
    sigma = sigma.reshape(1, 1, -1)
    which: dict[str, Any] = dict(noise=noise, stream=stream, implementation=implementation)
    return log_density_p.bind(keys[None], flat, sigma, **which)[0, 0]


def leaf_mean(
    keys,
    x,
    sigma,
    weights,
    baseline,
    *,
    op: str,
    axis: int,
    noise: str,
    stream: Stream,
    implementation: str | None,
) -> jax.Array:
    """Mean of a recognised op over the samples of one leaf, float32, its outputs along `axis`.

    weights: float32 [N]; baseline: the op at x itself, or None without a baseline.
    """
    if op_math(op).constant(x.shape[axis]) and baseline is not None:
        return baseline  # its gradient is zero, and without rounding
    rows, sigma = _rows(x, axis), _rows(sigma, axis)
    which: dict[str, Any] = dict(noise=noise, stream=stream, implementation=implementation)
    inner = math.prod(x.shape[axis + 1 :])
    total = op_sum_p.bind(keys[None], rows, sigma, weights[None, None], op=op, inner=inner, **which)
    total = _outputs(total, x, axis)
    if baseline is not None:
        total = total + (weights.size - jnp.sum(weights)) * baseline
    return total / weights.size


def _rows(a: jax.Array, axis: int) -> jax.Array:
    """x or sigma as the op's kernels take them, [1, 1, rows, d]; only the score has derivatives."""
    a = lax.stop_gradient(a)
    return jnp.moveaxis(a, axis, -1).reshape(1, 1, -1, a.shape[axis]) if a.ndim else a[(None,) * 4]


def _outputs(a: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """The inverse of `_rows`, for outputs of the op at x."""
    lead = (*x.shape[:axis], *x.shape[axis + 1 :])
    return jnp.moveaxis(a.reshape(*lead, -1), -1, axis)


def has_lone_mean(op: str, axis: int, shape: tuple[int, ...], num_samples: int) -> bool:
    """Whether `lone_mean` is for an op at x of this shape."""
    d = shape[axis]
    kept = keeps_codes(op, math.prod(shape) // d, d, num_samples)
    return one_pass.AVAILABLE and kept and not op_math(op).constant(d)


@functools.lru_cache(maxsize=512)
def lone_mean(
    *, op: str, axis: int, noise: str, stream: Stream, implementation: str | None
) -> Callable[..., jax.Array]:
    """`leaf_mean` of the only leaf, from (keys, x, sigma, baseline) and with its own weights.

    In forward mode, its value and its tangent take one pass over the noise.
    """
    which: dict[str, Any] = dict(noise=noise, stream=stream, implementation=implementation)

    @jax.custom_jvp
    def mean(keys, x, sigma, baseline):
        weights = jnp.exp(log_density(keys, x, sigma, **which))
        return leaf_mean(keys, x, sigma, weights, baseline, op=op, axis=axis, **which)

    @functools.partial(mean.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        keys, x, sigma, baseline = primals
        _, dx, dsigma, _ = tangents
        of_op = keys[None], _rows(x, axis), _rows(sigma, axis)
        leaf = x.reshape(1, 1, -1), sigma.reshape(1, 1, -1)
        params = dict(which, op=op, inner=math.prod(x.shape[axis + 1 :]))
        if is_zero(dx):
            codes, dot = samples_p.bind(*of_op, **params), jnp.zeros(())
        else:
            t = (dx / sigma).reshape(leaf[0].shape)
            codes, dot = one_pass.samples_and_dot_p.bind(*of_op, *leaf, t, **params)
        if not is_zero(dsigma):
            t = jnp.broadcast_to(dsigma / sigma, x.shape).reshape(leaf[0].shape)
            dot += score_dot_p.bind(keys[None], *leaf, t, order=1, power=1, **which) - jnp.sum(t)
        weights = jnp.exp(log_density(keys, x, sigma, **which))
        d_weights = weights * dot.reshape(-1)

        def total(w):
            found = codes_sum_p.bind(codes, w[None, None], op=op, d=x.shape[axis])
            return _outputs(found, x, axis)

        value, tangent = total(weights), total(d_weights)
        if baseline is not None:
            value += (weights.size - jnp.sum(weights)) * baseline
            tangent -= jnp.sum(d_weights) * baseline
        return value / weights.size, tangent / weights.size

    return mean
