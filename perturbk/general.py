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

from perturbk.dice import one_with_log, weighted_sum
from perturbk.kernels.blocks import even_blocks
from perturbk.kernels.draws import Draws
from perturbk.kernels.held import held
from perturbk.kernels.streams import Stream
from perturbk.kernels.tuning import TUNING

Leaves = Sequence[jax.Array]
LeafFun = Callable[[list[jax.Array]], list[jax.Array]]
LogProb = Callable[[jax.Array], jax.Array]

_OUTPUT = "perturbk_output"


def counted(
    fun: LeafFun,
    keys: Leaves,
    xs: Leaves,
    sigmas: Leaves,
    weights: jax.Array,
    baseline: Leaves | None,
    *,
    streams: Sequence[Stream],
    dtypes: Sequence[jnp.dtype],
    noise: str,
) -> list[jax.Array]:
    """Mean of `fun` with the noise drawn from counters and the weights given.

    Args:
        fun: list of leaves -> list of leaves.
        keys: per leaf uint32 [words, N].
        xs, sigmas: per leaf float32.
        weights: float32 [N], one in value, carrying the derivatives.
        baseline: fun(x), or None.
        streams: that the noise of each leaf is drawn from.
        dtypes: in which each leaf of a sample reaches `fun`.
        noise: a name in `perturbk.kernels.noise.NOISES`.

    Returns:
        Leaves in float32 or wider.
    """

    def block(words, weights: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        ys = _perturbed(words, xs, sigmas, streams, noise)
        return [y.astype(dtype) for y, dtype in zip(ys, dtypes, strict=True)], weights

    operands = [tuple(k) for k in keys], weights
    return _mean(fun, block, operands, weights.size, _blocks(xs), baseline)


def kept(
    fun: LeafFun,
    keys: Leaves,
    xs: Leaves,
    sigmas: Leaves,
    baseline: Leaves | None,
    *,
    streams: Sequence[Stream],
    dtypes: Sequence[jnp.dtype],
    noise: str,
    log_prob: LogProb,
) -> list[jax.Array]:
    """As `counted`, all samples at once, and the backward pass reads the samples again.

    For calls of so few variates that drawing them a second time would take longer.
    """

    def block(*words) -> tuple[list[jax.Array], jax.Array]:
        ys = _perturbed(words, xs, sigmas, streams, noise)
        log_density = jax.vmap(lambda *ys: _log_density(ys, xs, sigmas, log_prob))(*ys)
        ys = [y.astype(dtype) for y, dtype in zip(ys, dtypes, strict=True)]
        return ys, one_with_log(log_density)

    num_samples = keys[0].shape[1]
    operands = tuple(tuple(k) for k in keys)
    return _mean(fun, block, operands, num_samples, (num_samples, num_samples), baseline)


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
            `vmap` and a loop, and for sizes that are not known.
    """

    def one(key: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        leaf_keys = jax.random.split(key, len(xs)) if xs else []
        ys = [
            lax.stop_gradient(x + sigma * noise.sample(k, x.shape, x.dtype))
            for k, x, sigma in zip(leaf_keys, xs, sigmas, strict=True)
        ]
        log_density = _log_density(ys, xs, sigmas, noise.log_prob)
        return ys, jnp.exp(log_density - lax.stop_gradient(log_density))

    num_samples = keys.shape[0]
    most = _blocks(xs) if in_blocks else (num_samples, num_samples)
    return _mean(fun, jax.vmap(one), (keys,), num_samples, most, baseline)


def _blocks(xs: Leaves) -> tuple[int, int]:
    """Most samples of a block on a CPU, and elsewhere."""
    size = max(1, sum(x.size for x in xs))
    return TUNING.general_block // size, TUNING.general_wide_block // size


def _mean(
    fun: LeafFun,
    block: Callable[..., tuple[list[jax.Array], jax.Array]],
    operands: tuple,
    num_samples: int,
    most: tuple[int, int],
    baseline: Leaves | None,
) -> list[jax.Array]:
    """(1/N) sum_s [W_s f_s + (1 - W_s) f(x)], blocks rematerialised if there are several.

    `block` maps a slice of the operands (samples on their first axis) to the leaves of the samples
    and their weights. Blocks are of at most so many samples on a CPU, whose caches they are to fit,
    and elsewhere, where each starts programs of its own.
    """

    def part(operands: tuple) -> list[jax.Array]:
        return _total(fun, *block(*operands), baseline)

    on_cpu, wide = (even_blocks(num_samples, n) for n in most)
    if on_cpu == wide:
        total = _over_blocks(part, operands, num_samples, on_cpu)
    else:
        total = lax.platform_dependent(
            operands,
            cpu=lambda operands: _over_blocks(part, operands, num_samples, on_cpu),
            default=lambda operands: _over_blocks(part, operands, num_samples, wide),
        )
    return [t / num_samples for t in total]


def _total(
    fun: LeafFun, ys: list[jax.Array], weights: jax.Array, baseline: Leaves | None
) -> list[jax.Array]:
    """sum_s [W_s f_s + (1 - W_s) f(x)] of a block.

    One sum with one use of f_s: XLA on a CPU would evaluate `fun` again for a second one.
    """
    total = []
    # Mapped over the weights as well, for x may be an empty tree.
    for i, f in enumerate(jax.vmap(lambda ys, _: fun(ys))(ys, weights)):
        f = f.astype(jnp.promote_types(f.dtype, weights.dtype))
        f = checkpoint_name(f, _OUTPUT)
        base = None if baseline is None else jnp.asarray(baseline[i], f.dtype)
        total.append(weighted_sum(weights.astype(f.dtype), f, base))
    return total


def _over_blocks(
    part: Callable[[tuple], list[jax.Array]],
    operands: tuple,
    num_samples: int,
    blocks: tuple[int, int],
) -> list[jax.Array]:
    """The sum of `part` over blocks, (count, samples in each).

    Samples that do not fill a block are a smaller block of their own: a mask would keep `fun` from
    being vectorised.
    """
    count, lanes = blocks
    if count == 1:
        return part(operands)
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

    blocks_of = jax.tree.map(lambda a: a[:full].reshape(count, lanes, *a.shape[1:]), operands)
    zero = [jnp.zeros(s.shape, s.dtype) for s in shapes]
    total, _ = lax.scan(step, zero, blocks_of)
    if full < num_samples:
        rest = body(jax.tree.map(lambda a: a[full:], operands))
        total = [t + r for t, r in zip(total, rest, strict=True)]
    return total


def _log_density(ys: Leaves, xs: Leaves, sigmas: Leaves, log_prob: LogProb) -> jax.Array:
    """Log density of one sample, given x and sigma; ys do not depend on them."""
    total = jnp.zeros(())
    for y, x, sigma in zip(ys, xs, sigmas, strict=True):
        # Without -log sigma the derivative in sigma would be biased.
        log_sigma = jnp.broadcast_to(jnp.log(sigma), x.shape)
        total += jnp.sum(log_prob((y - x) / sigma)) - jnp.sum(log_sigma)
    return total


def _perturbed(words, xs: Leaves, sigmas: Leaves, streams, noise: str) -> list[jax.Array]:
    """x + sigma z for a block of samples, from their words per leaf (uint32 [block] each)."""
    ys = []
    for ks, x, sigma, stream in zip(words, xs, sigmas, streams, strict=True):
        scale = sigma[None] if sigma.ndim else sigma
        ys.append(lax.stop_gradient(x[None] + scale * _noise(ks, x.shape, stream, noise)))
    return ys


def _noise(words, shape: tuple[int, ...], stream: Stream, noise: str) -> jax.Array:
    """Standard noise of a block of samples: float32 [block, *shape]."""
    size = math.prod(shape)
    rows, length = stream.rows(size)
    # Fused into the noise, slicing the words would keep it from being vectorised.
    words = lax.optimization_barrier(words)
    row, column = (lax.broadcasted_iota(jnp.uint32, (rows, length), i) for i in (0, 1))
    if rows > 1:
        row, column = lax.optimization_barrier((row.reshape(1, size), column.reshape(1, size)))
    column = jnp.broadcast_to(column.reshape(1, size), (words[0].size, size))
    draws = Draws(stream, noise, tuple(w[:, None] for w in words), row, length, 1)

    def variates(draws: Draws, column: jax.Array) -> jax.Array:
        return draws.apart(draws.math.variate, draws.drawn(column))

    # Else `fun` would draw the noise again for every use of a sample.
    return held(variates, draws, column).reshape(-1, *shape)
