"""Which kernel runs where: the table that the lowering rules read.

The choice is made when a program is lowered for a platform, never while it is traced: one jitted
function may run on several platforms, and exporting for CUDA or TPU from a CPU gives the kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perturbk.kernels import (
    at_once,
    pallas_ops,
    pallas_score,
    tpu_ops,
    tpu_score,
    triton,
    xla,
    xla_score,
)
from perturbk.kernels.sorting import IN_ORDER, SORTS
from perturbk.kernels.streams import THREEFRY, Philox, Stream, Threefry
from perturbk.kernels.tuning import TUNING

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_GPUS = ("cuda", "rocm")


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


def _samples_and_dot(ops, score, keys, x, sigma, leaf_x, leaf_sigma, t, *, op, inner, **params):
    """Both in one kernel where there is one, else in two."""
    together = getattr(ops, "samples_and_dot", None)
    found = together and together(keys, x, sigma, t, op=op, inner=inner, **params)
    if found:
        return found
    codes = ops.samples(keys, x, sigma, op=op, inner=inner, **params)
    return codes, score.score_dot(keys, t, order=1, power=0, **params)


def _table(ops, score, **static) -> dict[str, Callable]:
    """Kernels of one implementation, by the name of their primitive."""
    bind = functools.partial
    return {
        "samples_and_dot": bind(_samples_and_dot, ops, score, **static),
        "samples": bind(ops.samples, **static),
        "op_sum": bind(ops.op_sum, **static),
        "op_dot": bind(ops.op_dot, **static),
        "score_dot": bind(_score_dot, bind(score.score_dot, **static)),
        "score_sum": bind(_score_sum, bind(score.score_sum, **static)),
        "log_density": _log_density,
    }


def _xla(platform: str) -> dict[str, Callable]:
    """Streamed, but for few samples on a TPU."""
    block = TUNING.gpu_block if platform in _GPUS else TUNING.block
    streamed = _table(xla, xla_score, block=block)
    if platform != "tpu":
        return streamed
    of_few = _table(at_once, at_once)

    def run(name: str, keys: jax.Array, *operands, **params):
        few = keys.shape[-1] <= TUNING.tpu_at_once_most
        return (of_few if few else streamed)[name](keys, *operands, **params)

    return {name: functools.partial(run, name) for name in streamed}


def _pallas(platform: str) -> dict[str, Callable]:
    """The fused kernels: a TPU has its own, and a CPU interprets those of the GPU."""
    ops, score = (tpu_ops, tpu_score) if platform == "tpu" else (pallas_ops, pallas_score)
    return _table(ops, score, platform=platform)


def _triton(platform: str) -> dict[str, Callable]:
    triton.require()
    # These import Triton, an optional dependency.
    from perturbk.kernels import triton_ops, triton_products

    return _table(triton_ops, triton_products, platform=platform)


# A new implementation is a line here: platform -> its kernels.
_KERNELS: dict[str, Callable[[str], dict[str, Callable]]] = {
    "xla": _xla,
    "pallas": _pallas,
    "triton": _triton,
}
IMPLEMENTATIONS = tuple(_KERNELS)
# Those that draw the noise in kernels, and nowhere else.
FUSED = ("pallas", "triton")

_ONLY_THREEFRY = "its kernels draw by Threefry, and cannot multiply to 64 bits, as Philox does"


def choose(
    platform: str,
    op: str | None,
    d: int,
    *,
    shared: int = 1,
    stream: Stream = THREEFRY,
    rows: int | None = None,
    num_samples: int | None = None,
) -> tuple[str, str]:
    """What `implementation=None` means: (name, reason), for an op or the score (None).

    Args:
        platform: one of `PLATFORMS`.
        op: its key, see `perturbk.kernels.ops`.
        d: coordinates in a row.
        shared: vectors that see the same noise, because a call is mapped over x alone.
        stream: that the noise is drawn from.
        rows, num_samples: None for enough.
    """
    if not stream.anywhere:
        return "pallas", "only the fused kernels of a TPU draw by its generator"
    if platform == "cpu":
        return "xla", "Pallas has no compiled CPU backend"
    on_tpu = platform == "tpu"
    if on_tpu and num_samples is not None and num_samples <= TUNING.tpu_at_once_most:
        return "xla", f"{num_samples} samples fill no vector, and XLA draws them all at once"
    if on_tpu and stream.cells(1) is None:
        return "xla", _ONLY_THREEFRY
    if on_tpu and shared > TUNING.tpu_shared_most:
        return "xla", f"{shared} vectors share their noise, which XLA draws once"
    most = TUNING.tpu_ranking_most if on_tpu else TUNING.kernel_sorted_most
    if op in IN_ORDER and d > most:
        return "xla", f"above {most} coordinates XLA sorts: their keys would not fit"
    sorts = None if rows is None or num_samples is None else rows * num_samples
    few = sorts is not None and sorts < TUNING.kernel_sorts_least
    if op in IN_ORDER and platform in _GPUS and d > TUNING.kernel_network_most and few:
        return "xla", f"XLA sorts {sorts} rows side by side, a kernel would one after the other"
    if on_tpu:
        return "pallas", "fused: fewer cycles than XLA's program, in the compiler's schedule"
    return "pallas", "fused: the noise never leaves the registers"


def check(implementation: str, platform: str, op: str | None, d: int, stream: Stream) -> None:
    """Raises NotImplementedError, with the reason, if a named implementation has no kernel."""
    why = _why_not(implementation, platform, op, d, stream)
    if not why:
        return
    if not stream.anywhere:
        raise NotImplementedError(f"rng='hardware' cannot run this call: {why}. Use rng='jax'.")
    raise NotImplementedError(
        f"implementation={implementation!r} cannot run this call: {why}. Use "
        f"implementation=None, which chooses, or another of {list(IMPLEMENTATIONS)}."
    )


def _why_not(implementation: str, platform: str, op: str | None, d: int, stream: Stream) -> str:
    if not stream.anywhere and (platform, implementation) != ("tpu", "pallas"):
        return (
            "only implementation='pallas' or None on a TPU draws by the chip's generator, and this "
            f"is {implementation!r} on {platform!r}"
        )
    if implementation == "triton":
        if not isinstance(stream, Threefry | Philox):
            return "its kernels draw with rng='jax' and rng='philox' only"
        return triton.why_not(platform, op, d)
    if implementation == "pallas" and platform == "tpu":
        if stream.cells(1) is None:
            return f"on a TPU {_ONLY_THREEFRY}"
        if op in IN_ORDER and d > TUNING.tpu_ranking_most:
            return f"on a TPU its kernels sort at most {TUNING.tpu_ranking_most} values, got {d}"
    elif implementation == "pallas" and op in SORTS and d > TUNING.kernel_sorted_most:
        return f"its kernels sort at most {TUNING.kernel_sorted_most} values, got {d}"
    return ""


def run(
    name: str,
    platform: str,
    *operands,
    implementation: str | None,
    stream: Stream = THREEFRY,
    **params,
) -> jax.Array:
    """Runs kernel `name` as lowered for `platform`."""
    *planes, d = operands[1].shape
    op = params.get("op")
    if implementation is None:
        implementation, _ = choose(
            platform,
            op,
            d,
            shared=planes[1],
            stream=stream,
            rows=math.prod(planes),
            num_samples=operands[0].shape[-1],
        )
    check(implementation, platform, op, d, stream)
    if stream != THREEFRY:  # which is every kernel's own, and the only one of some
        params["stream"] = stream
    return _KERNELS[implementation](platform)[name](*operands, **params)
