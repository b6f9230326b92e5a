"""Which kernel runs where: the table that the lowering rules read.

The choice is made when a program is lowered for a platform, never while it is traced: one jitted
function may run on several platforms, and exporting for CUDA or TPU from a CPU gives the kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perturbk.kernels import pallas_ops, pallas_score, tpu_ops, tpu_score, xla, xla_score
from perturbk.kernels.ops import OPS
from perturbk.kernels.tuning import TUNING

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def _log_density(keys: jax.Array, x: jax.Array, sigma: jax.Array, **_) -> jax.Array:
    """log density of each sample minus itself: zero. Only its derivative is of interest."""
    del sigma
    return jnp.zeros((*x.shape[:2], keys.shape[-1]), jnp.float32)


def _score_dot(kernel: Callable, keys, x, sigma, v, **params) -> jax.Array:
    del x, sigma  # carried for their derivative only
    return kernel(keys, v, **params)


def _score_sum(kernel: Callable, keys, x, sigma, w, **params) -> jax.Array:
    del sigma
    return kernel(keys, w, size=x.shape[-1], **params)


def _table(ops, score, **static) -> dict[str, Callable]:
    """Kernels of one implementation, by the name of their primitive."""
    bind = functools.partial
    return {
        "samples": bind(ops.samples, **static),
        "op_sum": bind(ops.op_sum, **static),
        "op_dot": bind(ops.op_dot, **static),
        "score_dot": bind(_score_dot, bind(score.score_dot, **static)),
        "score_sum": bind(_score_sum, bind(score.score_sum, **static)),
        "log_density": _log_density,
    }


def _pallas(platform: str) -> dict[str, Callable]:
    """The fused kernels: a TPU has its own, and a CPU interprets those of the GPU."""
    ops, score = (tpu_ops, tpu_score) if platform == "tpu" else (pallas_ops, pallas_score)
    return _table(ops, score, platform=platform)


# A new implementation is a line here: platform -> its kernels.
_KERNELS: dict[str, Callable[[str], dict[str, Callable]]] = {
    "xla": lambda platform: _table(xla, xla_score),
    "pallas": _pallas,
}
IMPLEMENTATIONS = tuple(_KERNELS)


def choose(platform: str, op: str | None, d: int, shared: int = 1) -> tuple[str, str]:
    """What `implementation=None` means: (name, reason), for an op or the score (None).

    Args:
        platform: one of `PLATFORMS`.
        op: a key of `perturbk.kernels.ops.OPS`.
        d: coordinates in a row.
        shared: vectors that see the same noise, because a call is mapped over x alone.
    """
    if platform == "cpu":
        return "xla", "Pallas has no compiled CPU backend"
    on_tpu = platform == "tpu"
    if on_tpu and shared > TUNING.tpu_shared_most:
        return "xla", f"{shared} vectors share their noise, which XLA draws once"
    most = TUNING.tpu_ranking_most if on_tpu else TUNING.kernel_counting_most
    if op is not None and OPS[op].streamed and d > most:
        why = "XLA sorts: their keys would not fit" if on_tpu else "a sort beats counting"
        return "xla", f"above {most} coordinates {why}"
    if on_tpu:
        return "pallas", "fused: fewer cycles than XLA's program, in the compiler's schedule"
    return "pallas", "fused: the noise never leaves the registers"


def run(name: str, platform: str, *operands, implementation: str | None, **params) -> jax.Array:
    """Runs kernel `name` as lowered for `platform`."""
    if implementation is None:
        _, shared, *_, d = operands[1].shape
        implementation, _ = choose(platform, params.get("op"), d, shared)
    return _KERNELS[implementation](platform)[name](*operands, **params)
