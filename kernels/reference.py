"""The specification: the plain estimator, every sample at once, for tests.

Berthet et al. 2020 (arXiv 2002.08676, section 3) in the form of Foerster et al. 2018 (DiCE,
arXiv 1802.05098). Every implementation must agree with it: in value and in all derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def perturbed_mean(
    fun: Callable[[Any], Any],
    key: jax.Array,
    x: Any,
    *,
    num_samples: int,
    sigma: jax.Array | float,
    noise: Any,
    use_baseline: bool = True,
) -> Any:
    """(1/N) sum_s [W_s fun(y_s) + (1 - W_s) fun(x)], y_s = x + sigma z_s held fixed.

    W_s = p(y_s) / stop_gradient(p(y_s)), with p the density of y_s given x and sigma, is one in
    value and carries the derivatives: those of the log density, the scores.

    Args:
        fun: pytree -> pytree; its derivative is never taken.
        key: one typed key.
        x: pytree of floating arrays.
        num_samples: N; memory is proportional to it.
        sigma: scalar, or broadcasts to every leaf.
        noise: has `sample(key, shape, dtype)` and an elementwise `log_prob(z)`.
        use_baseline: whether to subtract fun(x), here the second term.
    """
    leaves, treedef = jax.tree.flatten(x)
    baseline = fun(jax.tree.map(lax.stop_gradient, x))

    def sample(sample_key: jax.Array) -> Any:
        ys, log_p = [], jnp.zeros(())
        for leaf_key, leaf in zip(jax.random.split(sample_key, len(leaves)), leaves, strict=True):
            y = lax.stop_gradient(leaf + sigma * noise.sample(leaf_key, leaf.shape, leaf.dtype))
            # The density of y is that of z over sigma: without the second term, the derivative
            # with respect to sigma is biased.
            log_p_leaf = noise.log_prob((y - leaf) / sigma) - jnp.log(jnp.asarray(sigma))
            log_p, ys = log_p + jnp.sum(log_p_leaf), [*ys, y]
        weight = jnp.exp(log_p - lax.stop_gradient(log_p))
        f = fun(jax.tree.unflatten(treedef, ys))
        if not use_baseline:
            return jax.tree.map(lambda f: weight * f, f)
        return jax.tree.map(lambda f, b: weight * f + (1 - weight) * b, f, baseline)

    return jax.tree.map(
        lambda a: jnp.mean(a, 0), jax.vmap(sample)(jax.random.split(key, num_samples))
    )
