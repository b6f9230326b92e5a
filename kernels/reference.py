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

from perturbk.kernels import philox
from perturbk.kernels.noise import NOISES
from perturbk.kernels.threefry import threefry2x32

Draw = Callable[[jax.Array, int, jax.Array], jax.Array]  # (sample, leaf's number, leaf) -> z


def perturbed_mean(
    fun: Callable[[Any], Any],
    key: jax.Array,
    x: Any,
    *,
    num_samples: int,
    sigma: jax.Array | float,
    noise: Any,
    use_baseline: bool = True,
    draw: Draw | None = None,
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
        draw: the noise, as a function of `DRAWS` makes it; by default `noise.sample`'s, with keys
            split as optax splits them.
    """
    leaves, treedef = jax.tree.flatten(x)
    baseline = fun(jax.tree.map(lax.stop_gradient, x))

    keys = jax.random.split(key, num_samples)

    def optax_draw(s: jax.Array, i: int, leaf: jax.Array) -> jax.Array:
        return noise.sample(jax.random.split(keys[s], len(leaves))[i], leaf.shape, leaf.dtype)

    draw = draw or optax_draw

    def sample(s: jax.Array) -> Any:
        ys, log_p = [], jnp.zeros(())
        for i, leaf in enumerate(leaves):
            y = lax.stop_gradient(leaf + sigma * draw(s, i, leaf))
            # The density of y is that of z over sigma: without the second term, the derivative
            # with respect to sigma is biased.
            log_p_leaf = noise.log_prob((y - leaf) / sigma) - jnp.log(jnp.asarray(sigma))
            log_p, ys = log_p + jnp.sum(log_p_leaf), [*ys, y]
        weight = jnp.exp(log_p - lax.stop_gradient(log_p))
        f = fun(jax.tree.unflatten(treedef, ys))
        if not use_baseline:
            return jax.tree.map(lambda f: weight * f, f)
        return jax.tree.map(lambda f, b: weight * f + (1 - weight) * b, f, baseline)

    return jax.tree.map(lambda a: jnp.mean(a, 0), jax.vmap(sample)(jnp.arange(num_samples)))


def philox_draw(key: jax.Array, noise: str) -> Draw:
    """The noise of `rng="philox"`, element by element; `noise` is a name in `philox.NOISES`.

    Element e of leaf i, seen as rows along its last axis, is word `column % 4` of the counter
    (row, sample, i, column // 4) under two words of the key; `philox.py` says what becomes of it.
    """
    k0, k1 = jax.random.bits(key, (2,), jnp.uint32)

    def draw(s: jax.Array, i: int, leaf: jax.Array) -> jax.Array:
        last = leaf.shape[-1] if leaf.ndim else 1
        element = jnp.arange(leaf.size, dtype=jnp.uint32)
        row, column = element // last, element % last
        sample = jnp.broadcast_to(s, row.shape).astype(jnp.uint32)
        counter = (row, sample, jnp.full_like(row, i), column // 4)
        math = philox.NOISES[noise]
        drawn = math.one(philox.philox4x32(k0, k1, counter), column % 4)
        return math.math().variate(drawn).reshape(leaf.shape)

    return draw


def threefry_pair_draw(key: jax.Array, noise: str) -> Draw:
    """The noise of `rng="threefry_pair"`, element by element; `noise` is a name in `NOISES`.

    Element e of leaf i, seen as rows along its last axis, is word `column % 2` of the counter
    (0, cell), with cells of two columns counted from row to row. It is encrypted under the key that
    `jax.random` would derive for sample and leaf from a key of two words of the given one.
    """
    k0, k1 = jax.random.bits(key, (2,), jnp.uint32)

    def draw(s: jax.Array, i: int, leaf: jax.Array) -> jax.Array:
        last = leaf.shape[-1] if leaf.ndim else 1
        element = jnp.arange(leaf.size, dtype=jnp.uint32)
        row, column = element // last, element % last
        zero = jnp.uint32(0)
        of_sample = threefry2x32(k0, k1, zero, s.astype(jnp.uint32))
        of_leaf = threefry2x32(*of_sample, zero, jnp.uint32(i))
        cell = row * ((last + 1) // 2) + column // 2
        first, second = threefry2x32(*of_leaf, jnp.zeros_like(cell), cell)
        bits = jnp.where(column % 2 == 0, first, second)
        return NOISES[noise]().variate(bits).reshape(leaf.shape)

    return draw


# rng -> (key, noise) -> its noise; that of "jax" is the noise object's own.
DRAWS = {"threefry_pair": threefry_pair_draw, "philox": philox_draw}
