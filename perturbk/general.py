"""The general path: the mean of an arbitrary `fun`, in blocks of samples.

Right for anything that optax accepts: `fun` may close over values, which it is differentiated
with respect to; x and sigma are reached only through the weights of the samples. Memory is that
of one block, whatever the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from perturbk.kernels.blocks import split
from perturbk.kernels.noise import NOISES
from perturbk.kernels.threefry import element_bits
from perturbk.kernels.tuning import TUNING

Leaves = Sequence[jax.Array]
LeafFun = Callable[[list[jax.Array]], list[jax.Array]]

_OUTPUT = "perturbk_output"


def counted(
    fun: LeafFun,
    keys: Leaves,
    xs: Leaves,
    sigmas: Leaves,
    weights: jax.Array,
    baseline: Leaves | None,
    *,
    dtypes: Sequence[jnp.dtype],
    noise: str,
) -> list[jax.Array]:
    """Mean of `fun` with the noise drawn from counters and the weights given.

    Args:
        fun: list of leaves -> list of leaves.
        keys: per leaf uint32 [2, N].
        xs, sigmas: per leaf float32.
        weights: float32 [N], one in value, carrying the derivatives.
        baseline: fun(x), or None.
        dtypes: in which each leaf of a sample reaches `fun`.
        noise: a name in `perturbk.kernels.noise.NOISES`.

    Returns:
        Leaves in float32 or wider.
    """

    def block(sample: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        ys = []
        for k, x, sigma, dtype in zip(keys, xs, sigmas, dtypes, strict=True):
            z = _noise(k[:, sample], x.shape, noise)
            ys.append(lax.stop_gradient((x + sigma * z).astype(dtype)))
        return ys, weights[sample]

    size = max(1, sum(x.size for x in xs))
    return _mean(fun, block, weights.size, TUNING.general_block // size, baseline)


def drawn(
    fun: LeafFun,
    noise,
    keys: jax.Array,
    xs: Leaves,
    sigmas: Leaves,
    baseline: Leaves | None,
    *,
    in_blocks: bool,
) -> list[jax.Array]:
    """Mean of `fun` with the noise from `noise.sample` and the weights from `noise.log_prob`.

    Args:
        keys: typed keys [N], one per sample.
        in_blocks: False draws all samples at once, for generators whose numbers differ between
            `vmap` and a loop.
    """

    def one(key: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        leaf_keys = jax.random.split(key, len(xs)) if xs else []
        ys, log_density = [], jnp.zeros(())
        for k, x, sigma in zip(leaf_keys, xs, sigmas, strict=True):
            y = lax.stop_gradient(x + sigma * noise.sample(k, x.shape, x.dtype))
            log_prob = noise.log_prob((y - x) / sigma)
            # -log sigma makes it the density of y: without it the derivative in sigma is biased.
            log_density += jnp.sum(log_prob) - jnp.sum(jnp.broadcast_to(jnp.log(sigma), x.shape))
            ys.append(y)
        return ys, jnp.exp(log_density - lax.stop_gradient(log_density))

    num_samples = keys.shape[0]
    size = max(1, sum(x.size for x in xs))
    most = TUNING.general_block // size if in_blocks else num_samples
    return _mean(fun, lambda sample: jax.vmap(one)(keys[sample]), num_samples, most, baseline)


def _mean(
    fun: LeafFun,
    block: Callable[[jax.Array], tuple[list[jax.Array], jax.Array]],
    num_samples: int,
    most: int,
    baseline: Leaves | None,
) -> list[jax.Array]:
    """(1/N) sum_s [f_s + (W_s - 1) (f_s - f(x))], blocks rematerialised if there are several.

    In this form a constant `fun` has a gradient of exactly zero. `block` maps sample indices to
    the leaves of the samples and their weights.
    """
    count, lanes = split(num_samples, most)

    def part(first: jax.Array | int) -> list[jax.Array]:
        sample = first + jnp.arange(lanes)
        live = sample < num_samples
        ys, weights = block(jnp.minimum(sample, num_samples - 1))
        total = []
        for i, f in enumerate(jax.vmap(fun)(ys)):
            f = f.astype(jnp.promote_types(f.dtype, jnp.float32))
            keep = live.reshape(-1, *[1] * (f.ndim - 1))
            f = checkpoint_name(jnp.where(keep, f, 0), _OUTPUT)
            centred = f if baseline is None else jnp.where(keep, f - baseline[i], 0)
            tangent = jnp.tensordot((weights - 1).astype(f.dtype), centred, 1)
            total.append(jnp.sum(f, 0) + tangent)
        return total

    if count == 1:
        return [t / num_samples for t in part(0)]
    shapes = jax.eval_shape(part, 0)
    # The outputs are kept for the backward pass where they are few: then neither `fun` nor its
    # noise is evaluated twice. They are all that the derivative in x needs.
    kept = num_samples * sum(s.size * s.dtype.itemsize for s in shapes) <= TUNING.residual_bytes
    names = [_OUTPUT] if kept else []
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    body = jax.checkpoint(part, policy=policy)

    def step(total: list[jax.Array], first: jax.Array) -> tuple[list[jax.Array], None]:
        return [t + p for t, p in zip(total, body(first), strict=True)], None

    zero = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    total, _ = lax.scan(step, zero, jnp.arange(count) * lanes)
    return [t / num_samples for t in total]


def _noise(keys: jax.Array, shape: tuple[int, ...], noise: str) -> jax.Array:
    """Standard noise of a block of samples: keys uint32 [2, block] -> float32 [block, *shape]."""
    element = lax.broadcasted_iota(jnp.uint32, (keys.shape[1], math.prod(shape)), 1)
    bits = element_bits(keys[0, :, None], keys[1, :, None], element)
    # The barrier keeps `fun` from drawing the noise again for every use of a sample.
    z = lax.optimization_barrier(NOISES[noise].variate(bits))
    return z.reshape(-1, *shape)
