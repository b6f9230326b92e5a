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

from perturbk.kernels.blocks import even_blocks
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

    def block(words, weights: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        ys = []
        for (k0, k1), x, sigma, dtype in zip(words, xs, sigmas, dtypes, strict=True):
            z = _noise(k0, k1, x.shape, noise)
            scale = sigma[None] if sigma.ndim else sigma
            ys.append(lax.stop_gradient((x[None] + scale * z).astype(dtype)))
        return ys, weights

    size = max(1, sum(x.size for x in xs))
    operands = [(k[0], k[1]) for k in keys], weights
    return _mean(fun, block, operands, weights.size, TUNING.general_block // size, baseline)


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
    return _mean(fun, jax.vmap(one), (keys,), num_samples, most, baseline)


def _mean(
    fun: LeafFun,
    block: Callable[..., tuple[list[jax.Array], jax.Array]],
    operands: tuple,
    num_samples: int,
    most: int,
    baseline: Leaves | None,
) -> list[jax.Array]:
    """(1/N) sum_s [W_s f_s + (1 - W_s) f(x)], blocks rematerialised if there are several.

    One sum with one use of f_s: XLA on a CPU would evaluate `fun` again for a second one. `block`
    maps a slice of the operands (samples on their first axis) to the leaves of the samples and
    their weights. Samples that do not fill a block are a smaller block of their own: a mask would
    keep `fun` from being vectorised.
    """

    def part(operands: tuple) -> list[jax.Array]:
        ys, weights = block(*operands)
        total = []
        # Mapped over the weights as well, for x may be an empty tree.
        for i, f in enumerate(jax.vmap(lambda ys, _: fun(ys))(ys, weights)):
            f = f.astype(jnp.promote_types(f.dtype, weights.dtype))
            w = weights.astype(f.dtype).reshape(-1, *[1] * (f.ndim - 1))
            f = w * checkpoint_name(f, _OUTPUT)
            if baseline is not None:
                f = f + (1 - w) * jnp.asarray(baseline[i])[None]
            total.append(jnp.sum(f, 0))
        return total

    count, lanes = even_blocks(num_samples, most)
    if count == 1:
        return [t / num_samples for t in part(operands)]
    shapes = jax.eval_shape(part, operands)
    # The outputs are kept for the backward pass where they are few: then neither `fun` nor its
    # noise is evaluated twice. They are all that the derivative in x needs.
    kept = num_samples * sum(s.size * s.dtype.itemsize for s in shapes) <= TUNING.residual_bytes
    names = [_OUTPUT] if kept else []
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    body = jax.checkpoint(part, policy=policy)
    full = count * lanes

    def step(total: list[jax.Array], operands: tuple) -> tuple[list[jax.Array], None]:
        return [t + p for t, p in zip(total, body(operands), strict=True)], None

    blocks = jax.tree.map(lambda a: a[:full].reshape(count, lanes, *a.shape[1:]), operands)
    zero = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    total, _ = lax.scan(step, zero, blocks)
    if full < num_samples:
        rest = body(jax.tree.map(lambda a: a[full:], operands))
        total = [t + r for t, r in zip(total, rest, strict=True)]
    return [t / num_samples for t in total]


def _noise(k0: jax.Array, k1: jax.Array, shape: tuple[int, ...], noise: str) -> jax.Array:
    """Standard noise of a block of samples: key words uint32 [block] -> float32 [block, *shape]."""
    element = lax.broadcasted_iota(jnp.uint32, (k0.size, math.prod(shape)), 1)
    # Fused into the noise, slicing the keys would keep it from being vectorised.
    k0, k1 = lax.optimization_barrier((k0, k1))
    bits = element_bits(k0[:, None], k1[:, None], element)
    # The barrier keeps `fun` from drawing the noise again for every use of a sample.
    z = lax.optimization_barrier(NOISES[noise].variate(bits))
    return z.reshape(-1, *shape)
