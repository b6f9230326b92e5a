"""The fused estimator of one leaf: from per-sample keys to the mean, through the primitives.

The weights W_s = exp(l_s - stop_gradient(l_s)) of the DiCE estimator (Foerster et al. 2018,
arXiv 1802.05098) are one in value and carry every derivative with respect to x and sigma.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from perturbk.primitives import log_density_p, op_sum_p


def log_density(keys, x, sigma, *, noise: str, implementation: str | None) -> jax.Array:
    """l_s of one leaf, less its own value: float32 [N], zero, with every derivative.

    keys uint32 [2, N]; x float32 of any shape; sigma float32, scalar or of x's shape.
    """
    flat = x.reshape(1, 1, -1)
    sigma = sigma.reshape(1, 1, -1)
    out = log_density_p.bind(keys[None], flat, sigma, noise=noise, implementation=implementation)
    return out[0, 0]


def leaf_mean(
    keys, x, sigma, weights, baseline, *, op: str, axis: int, noise: str, implementation: str | None
) -> jax.Array:
    """Mean of a recognised op over the samples of one leaf, float32 of x's shape.

    weights: float32 [N]; baseline: the op at x itself, or None without a baseline.
    """
    d, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
    if d == 1 and baseline is not None:
        return baseline  # the op is constant: its gradient is zero, and without rounding
    rows = jnp.moveaxis(lax.stop_gradient(x), axis, -1)
    lead = rows.shape[:-1]
    sigma = lax.stop_gradient(sigma)
    if sigma.ndim:
        sigma = jnp.moveaxis(sigma, axis, -1).reshape(1, 1, -1, d)
    else:
        sigma = sigma.reshape(1, 1, 1, 1)
    total = op_sum_p.bind(
        keys[None],
        rows.reshape(1, 1, -1, d),
        sigma,
        weights[None, None],
        op=op,
        noise=noise,
        inner=inner,
        implementation=implementation,
    )
    total = jnp.moveaxis(total.reshape(*lead, d), -1, axis)
    if baseline is not None:
        total = total + (weights.size - jnp.sum(weights)) * baseline
    return total / weights.size
