"""The one place that calls Pallas: grid, block shapes and the compiler of each platform.

Bodies see refs and plain `jnp` values only, so that another lowering can take the place of the
ones named here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl


def _compiler_params(platform: str, semantics: Sequence[str] | None, vmem_bytes: int | None):
    if platform in ("cuda", "rocm"):
        from jax.experimental.pallas import triton as plgpu

        # One stage: there are no loads to overlap. Four warps: one per scheduler of an SM.
        return plgpu.CompilerParams(num_warps=4, num_stages=1)
    if platform == "tpu":
        from jax.experimental.pallas import tpu as pltpu

        return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=vmem_bytes)
    return None


def launch(
    body: Callable[..., None],
    operands: Sequence[jax.Array],
    in_specs: Sequence[pl.BlockSpec],
    out_spec: pl.BlockSpec | Sequence[pl.BlockSpec],
    out_shape: jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    *,
    grid: tuple[int, ...],
    name: str,
    platform: str,
    scratch: Sequence[object] = (),
    semantics: Sequence[str] | None = None,
    vmem_bytes: int | None = None,
):
    """Runs one kernel on `platform`; on a CPU in interpret mode, for tests.

    Only for a TPU's kernels:
        scratch: memory that outlives a program, see `vmem`.
        semantics: "parallel" or "arbitrary" (in order, on one core) for each axis of the grid.
        vmem_bytes: vector memory that the kernel may use, if more than the compiler's default.
    """
    with warnings.catch_warnings():
        # jax 0.11 announces the end of the Triton lowering of Pallas; nothing else is filtered.
        warnings.filterwarnings("ignore", message=".*Triton.*", category=DeprecationWarning)
        return pl.pallas_call(
            body,
            grid=grid,
            in_specs=list(in_specs),
            out_specs=out_spec,
            out_shape=out_shape,
            scratch_shapes=list(scratch),
            compiler_params=_compiler_params(platform, semantics, vmem_bytes),
            interpret=platform == "cpu",
            name=f"perturbk_{name}",
        )(*operands)


def vmem(shape: tuple[int, ...], dtype) -> object:
    """Scratch in a TPU's vector memory."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.VMEM(shape, dtype)


def roll(a: jax.Array, shift: jax.Array, axis: int) -> jax.Array:
    """`jnp.roll` by a traced, non-negative shift, in a TPU's kernel."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.roll(a, shift, axis)


def opaque(a: jax.Array, platform: str) -> jax.Array:
    """uint32 values that a GPU's compiler takes as they are.

    It would otherwise regroup the sums of the first rounds of Threefry with those that made the
    counter, and need 180 instructions rather than 127 for a Gumbel variate (sm_90).
    """
    if platform != "cuda":
        return a
    from jax.experimental.pallas import triton as plgpu

    shape = jax.ShapeDtypeStruct(a.shape, jnp.int32)  # unsigned results do not lower
    (moved,) = plgpu.elementwise_inline_asm(
        "mov.b32 $0, $1;", args=[a], constraints="=r,r", pack=1, result_shape_dtypes=[shape]
    )
    return moved.astype(jnp.uint32)


def power_of_two(n: int) -> int:
    """Smallest power of two that is at least n: Triton has no other tile sizes."""
    return 1 << (n - 1).bit_length()
