"""`make_perturbed_fun`: from (key, x) to a plan, and from the plan to the mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from perturbk import fused, general, validate
from perturbk.distributions import Gumbel, Noise
from perturbk.jaxprs import trace
from perturbk.kernels.streams import STREAMS
from perturbk.plan import Plan, make_plan, result_dtype
from perturbk.recognise import Match

_GUMBEL = Gumbel()


class PerturbedFunction:
    """The smoothed function f(key, x); made by `make_perturbed_fun`, described by `explain`."""

    def __init__(
        self,
        fun: Callable[[Any], Any],
        num_samples: int,
        sigma: ArrayLike,
        noise: Noise,
        use_baseline: bool,
        implementation: str | None,
        rng: str,
    ):
        self._fun = fun
        self._num_samples = validate.check_options(fun, num_samples, noise, implementation, rng)
        self._sigma = validate.check_sigma(sigma)
        self._noise = noise
        self._use_baseline = bool(use_baseline)
        self._implementation = implementation
        self._rng = rng
        self.__name__ = f"perturbed_{getattr(fun, '__name__', type(fun).__name__)}"

    def __call__(self, key: jax.Array, x: Any) -> Any:
        """Mean of `fun` over perturbed copies of x.

        Args:
            key: one random key, typed or legacy.
            x: pytree of floating arrays.

        Returns:
            Pytree of `fun`'s structure and shapes, floating dtypes.
        """
        plan, out_tree, operands = self.plan(key, x)
        # A user's noise object may hold traced values, which a cached program must not capture.
        run = _run_jitted if plan.noise is not None else _run
        return jax.tree.unflatten(out_tree, run(plan, *operands))

    def plan(self, key: jax.Array, x: Any) -> tuple[Plan, Any, tuple]:
        """(plan, output tree, operands of the run) of a call with these arguments."""
        key = validate.check_key(key)
        leaves, treedef = validate.check_leaves(x, self._sigma)
        traced, consts, out_tree = trace(self._fun, jax.tree.unflatten(treedef, leaves))
        validate.check_output(jax.tree.unflatten(out_tree, traced.out_avals))
        plan = make_plan(
            traced,
            leaves,
            key,
            self._noise,
            self._num_samples,
            self._use_baseline,
            self._implementation,
            self._rng,
        )
        return plan, out_tree, (key, leaves, self._sigma, consts)

    def __repr__(self) -> str:
        return f"<{self.__name__}, {self._num_samples} samples>"


def _run(plan: Plan, key: jax.Array, leaves: list, sigma, consts: list) -> list[jax.Array]:
    """The output leaves of a planned call."""
    # The user's strict settings held when `fun` was traced, and are not meant for what follows.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        baseline = None
        if plan.use_baseline:
            baseline = plan.traced(consts, *map(lax.stop_gradient, leaves))
        if plan.noise is None:
            out = _drawn(plan, key, leaves, sigma, consts, baseline)
        else:
            out = _counted(plan, plan.noise, key, leaves, sigma, consts, baseline)
        return [
            o.astype(result_dtype(leaves, aval))
            for o, aval in zip(out, plan.traced.out_avals, strict=True)
        ]


_run_jitted = jax.jit(_run, static_argnums=0)


def _drawn(plan: Plan, key, leaves, sigma, consts, baseline) -> list[jax.Array]:
    """All leaves on the general path, with the noise object's own methods."""
    return general.drawn(
        functools.partial(_call, plan.traced, consts, None),
        plan.noise_object,
        jax.random.split(key, plan.num_samples),
        leaves,
        [jnp.asarray(sigma, leaf.dtype) for leaf in leaves],
        baseline,
        in_blocks=plan.in_blocks,
    )


def _counted(plan: Plan, noise: str, key, leaves, sigma, consts, baseline) -> list[jax.Array]:
    """Each leaf on its kernel or the general path, with noise from counters."""
    streams = [STREAMS[plan.rng](leaf.shape[-1] if leaf.ndim else 1) for leaf in leaves]
    keys = [stream.words(key, plan.num_samples, i) for i, stream in enumerate(streams)]
    xs = [leaf.astype(jnp.float32) for leaf in leaves]
    sigma = jnp.asarray(sigma, jnp.float32)
    sigmas = [jnp.broadcast_to(sigma, x.shape) if sigma.ndim else sigma for x in xs]
    if plan.keeps_samples(sum(x.size for x in xs)):
        return general.kept(
            functools.partial(_call, plan.traced, consts, None),
            keys,
            xs,
            sigmas,
            baseline,
            streams=streams,
            dtypes=[leaf.dtype for leaf in leaves],
            noise=noise,
            log_prob=plan.noise_object.log_prob,
        )
    lone = plan.outputs[0] if len(leaves) == len(plan.outputs) == 1 else None
    if isinstance(lone, Match) and fused.has_lone_mean(
        lone.op.name, lone.op.axis, xs[0].shape, plan.num_samples
    ):
        mean = fused.lone_mean(
            op=lone.op.name,
            axis=lone.op.axis,
            noise=noise,
            stream=streams[0],
            implementation=plan.implementation,
        )
        base = None if baseline is None else baseline[0].astype(jnp.float32)
        return [mean(keys[0], xs[0], sigmas[0], base)]
    log_density = sum(
        fused.log_density(k, x, s, noise=noise, stream=stream, implementation=plan.implementation)
        for k, x, s, stream in zip(keys, xs, sigmas, streams, strict=True)
    )
    weights = jnp.exp(log_density)

    out: list[Any] = [None] * len(plan.outputs)
    for i, match in enumerate(plan.outputs):
        if isinstance(match, Match):
            leaf = match.leaf
            out[i] = fused.leaf_mean(
                keys[leaf],
                xs[leaf],
                sigmas[leaf],
                weights,
                None if baseline is None else baseline[i].astype(jnp.float32),
                op=match.op.name,
                axis=match.op.axis,
                noise=noise,
                stream=streams[leaf],
                implementation=plan.implementation,
            )
    if plan.general:
        means = general.counted(
            functools.partial(_call, plan.traced, consts, plan.general),
            keys,
            xs,
            sigmas,
            weights,
            None if baseline is None else [baseline[i] for i in plan.general],
            streams=streams,
            dtypes=[leaf.dtype for leaf in leaves],
            noise=noise,
        )
        for i, mean in zip(plan.general, means, strict=True):
            out[i] = mean
    return out


def _call(traced, consts, which: tuple[int, ...] | None, leaves: list) -> list[jax.Array]:
    """Some output leaves of `fun` (None: all), as a function of its input leaves."""
    out = traced(consts, *leaves)
    return out if which is None else [out[i] for i in which]


def make_perturbed_fun(
    fun: Callable[[Any], Any],
    num_samples: int = 1000,
    sigma: ArrayLike = 0.1,
    noise: Noise = _GUMBEL,
    use_baseline: bool = True,
    *,
    implementation: str | None = None,
    rng: str = "jax",
) -> PerturbedFunction:
    r"""Smooths a discrete function with noise, so that it can be trained through.

    Returns a Monte Carlo estimate of

    .. math:: f_\sigma(x) = \mathbb{E}_{z \sim \mu}\, f(x + \sigma z)

    whose derivatives of every order, by any of JAX's transformations, are unbiased estimates of
    those of :math:`f_\sigma`, from values of ``fun`` alone: ``fun`` is never differentiated with
    respect to x. A drop-in for ``optax.perturbations.make_perturbed_fun``: the same key gives the
    same numbers, up to the order of summation, in memory that does not grow with
    ``num_samples * x.size``. A few bytes per sample are kept.

    Args:
        fun: pytree of arrays -> pytree of arrays; it may close over other values, and gradients
            flow into them. One-hot argmaxes, rankings, sorts and top-ks, alone or in trees, are
            recognised and run on fused kernels; anything else is evaluated in blocks of samples.
        num_samples: number of perturbed copies N, at least 1.
        sigma: scale of the noise, positive: a scalar, or an array that broadcasts to every leaf
            of x. It may be traced; derivatives with respect to it are unbiased (optax's are not).
        noise: distribution with ``sample(key, shape, dtype)`` and ``log_prob(z)``, such as
            `Gumbel` or `Normal`, ours or optax's.
        use_baseline: subtract fun(x) in the gradient, which usually lowers its variance.
        implementation: ``None`` chooses by platform and ``fun`` (`explain` tells what and why);
            ``"xla"`` streams through plain XLA; ``"pallas"`` runs the fused Pallas kernels, in
            interpret mode on a CPU (for tests), and raises if the noise or the key has none;
            ``"triton"``, by name only, runs native Triton kernels on CUDA and ROCm (install
            ``perturbk[triton]``), and raises on other platforms and for rankings and sorts of
            more than 64. For a ``fun`` without a kernel, the last two are the score products of its
            derivatives.
        rng: stream of the noise, named by how it is drawn from the key.

            =================== ================================================================
            ``"jax"``           the numbers of `jax.random`, and so of optax
            ``"threefry_pair"`` others, for keys of any kind: two variates from one encryption by
                                Threefry where ``"jax"`` takes one, above all for TPUs. Not for
                                ``"triton"``
            ``"philox"``        others, for keys of any kind: four variates from one encryption by
                                Philox, cheap where the hardware multiplies (GPUs above all), and
                                with finer tails: uniforms of 32 bits rather than 23. On a TPU not
                                for ``"pallas"``
            ``"hardware"``      a TPU's own generator, the cheapest there. Its numbers are those of
                                a generation of chips, of unpublished make. Only on a TPU, and only
                                for a ``fun`` all of whose outputs have kernels along the last axis
            =================== ================================================================

    Returns:
        f(key, x) -> pytree of ``fun``'s structure and shapes. Dtypes are those of ``fun``
        promoted with x's, so integer and boolean outputs become floating. Noise and means of
        16-bit leaves are float32 inside.

    Raises:
        TypeError, ValueError: for an option that cannot be; and by f for a key or an x that
            cannot be (integer leaves, empty axes).
        NotImplementedError: by f, if the named implementation or stream cannot run the call.

    Example:
        >>> import jax, jax.numpy as jnp, perturbk
        >>> f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, num_samples=100, sigma=0.5)
        >>> x = jnp.array([-0.6, 1.9, -0.2, 1.1, -1.0])
        >>> key = jax.random.split(jax.random.PRNGKey(1), 2)[0]
        >>> print([round(float(p), 2) for p in f(key, x)])
        [0.02, 0.87, 0.01, 0.1, 0.0]

    References:
        Berthet et al. 2020, Learning with Differentiable Perturbed Optimizers, arXiv 2002.08676.
        Foerster et al. 2018, DiCE: The Infinitely Differentiable Monte Carlo Estimator,
        arXiv 1802.05098.
        Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3 (Threefry and Philox).
    """
    return PerturbedFunction(fun, num_samples, sigma, noise, use_baseline, implementation, rng)
