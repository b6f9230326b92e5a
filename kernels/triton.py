"""The one place that calls Triton, through jax-triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from perturbk.kernels.ops import SIZED_OPS
from perturbk.kernels.sorting import IN_ORDER
from perturbk.kernels.triton_plan import Loop
from perturbk.kernels.tuning import TUNING

# Takes the place of jax-triton on any platform, for tests and tools: (kernel, operands, outputs,
# programs, constants) -> results. They run the launches in Triton's interpreter, or compile them.
LAUNCHER: Callable[..., Sequence[jax.Array]] | None = None


def why_not(platform: str, op: str | None, d: int) -> str:
    """Why there is no kernel for an op, or for the score (None); empty if there is one."""
    if platform not in ("cuda", "rocm") and LAUNCHER is None:
        return f"Triton compiles for CUDA and ROCm only, and this is {platform!r}"
    if op not in (None, "argmax", *IN_ORDER) and op.rpartition("_")[0] not in SIZED_OPS:
        return f"{op} has no Triton kernel"
    if op in IN_ORDER and d > TUNING.triton_ranking_most:
        most = TUNING.triton_ranking_most
        return f"above {most} coordinates {op} has no Triton kernel, and here are {d}"
    return ""


def require() -> None:
    """Raises ImportError if Triton or jax-triton is not installed, or not one for this jax."""
    try:
        import triton  # noqa: F401  # pyright: ignore[reportMissingImports]

        if LAUNCHER is None:
            import jax_triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, AttributeError) as error:  # the latter: it looks into jax's internals
        raise ImportError(
            "implementation='triton' needs triton and a jax-triton that works with jax "
            f"{jax.__version__} ({error}). Install perturbk[triton], on Linux: jax-triton 0.3.1 "
            "with triton>=3.6, or from jax 0.11 on jax-triton>=0.4 with triton>=3.7. Or use "
            "implementation=None, 'pallas' or 'xla'."
        ) from error


def launch(
    kernel: Any,
    operands: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    *,
    planes: int,
    name: str,
    platform: str,
    LOOP: Loop,
    **constants: object,
) -> Sequence[jax.Array]:
    """Runs a kernel's programs for `LOOP` of each plane.

    Args:
        kernel: from `triton.jit`; its parameters are a pointer for each operand and each output,
            then the constants.
        constants: values of the kernel's other `tl.constexpr` parameters.
    """
    constants["LOOP"] = LOOP
    programs = planes * LOOP.blocks * LOOP.pieces
    if LAUNCHER is not None:
        return LAUNCHER(kernel, operands, outputs, programs, constants)
    import jax_triton  # pyright: ignore[reportMissingImports]

    if jax_triton.__version_info__ >= (0, 4):
        options = dict(out_type=list(outputs), backend_options=backend_options(platform))
    else:
        options = dict(out_shape=list(outputs))
    return jax_triton.triton_call(
        *operands,
        kernel=kernel,
        grid=(programs,),
        name=f"perturbk_{name}",
        num_warps=num_warps(),
        num_stages=1,  # there are no loads to overlap
        **options,
        **constants,
    )


def backend_options(platform: str) -> dict[str, object]:
    """Options of Triton's compiler."""
    # Fused multiply-add is to cease to be Triton's default in 3.10.
    options: dict[str, object] = dict(enable_fp_fusion=True)
    if platform == "cuda":
        # Triton would write for its own ptxas, but XLA's assembles it, which may be older. 8.8 is
        # that of CUDA 12.9 and knows all devices from Ampere to Blackwell.
        options["ptx_version"] = 88
    return options


def num_warps() -> int:
    """Of a program: a thread for each lane."""
    return TUNING.triton_lanes // 32
