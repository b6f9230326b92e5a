"""The one place that calls Pallas: grid, block shapes and the compiler of each platform.

Bodies see refs and plain `jnp` values only, so that another lowering can take the place of the
ones named here.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from perturbk.kernels import bitonic, columns, functions, network
from perturbk.kernels.machine import ANGLE, PLAIN, Machine, rotate
from perturbk.kernels.ptx import ptx
from perturbk.kernels.tuning import TUNING


def _compiler_params(
    platform: str, semantics: Sequence[str] | None, vmem_bytes: int | None, warps: int
):
    if platform in ("cuda", "rocm"):
        from jax.experimental.pallas import triton as plgpu

        # One stage: there are no loads to overlap.
        return plgpu.CompilerParams(num_warps=warps, num_stages=1)
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
    warps: int = TUNING.kernel_warps,
    scratch: Sequence[object] = (),
    semantics: Sequence[str] | None = None,
    vmem_bytes: int | None = None,
):
    """Runs one kernel on `platform`; on a CPU in interpret mode, for tests.

    warps: of a program on a GPU.

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
            compiler_params=_compiler_params(platform, semantics, vmem_bytes, warps),
            interpret=platform == "cpu",
            name=f"perturbk_{name}",
        )(*operands)


@dataclasses.dataclass(frozen=True)
class Program:
    """What a program on a GPU takes at a time.

    Attributes:
        lanes: samples.
        warps: that take them.
        times: so many times the coordinates that a tile has if each sample has one thread.
    """

    lanes: int
    warps: int
    times: int = 1


def program_for(num_samples: int, warps: int | None = None) -> Program:
    """The widest for so many samples that leaves few of its threads idle; warps: if not the usual
    number, at most so many."""

    def drawn(lanes: int) -> int:
        return -(-num_samples // lanes) * lanes

    least, of_warp = TUNING.kernel_least_lanes, TUNING.kernel_warp_lanes
    lanes = (warps or TUNING.kernel_warps) * of_warp
    while lanes > least and drawn(lanes) > drawn(least) * (1 + TUNING.kernel_idle):
        lanes //= 2
    return Program(lanes, max(1, lanes // of_warp), max(1, of_warp // lanes))


def vmem(shape: tuple[int, ...], dtype) -> object:
    """Scratch in a TPU's vector memory."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.VMEM(shape, dtype)


def smem_spec(block: tuple[int | None, ...], index_map: Callable) -> pl.BlockSpec:
    """A block of an operand in a TPU's scalar memory."""
    from jax.experimental.pallas import tpu as pltpu

    return pl.BlockSpec(block, index_map, memory_space=pltpu.SMEM)


def roll(a: jax.Array, shift: jax.Array, axis: int) -> jax.Array:
    """`jnp.roll` by a traced, non-negative shift, in a TPU's kernel."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.roll(a, shift, axis)


def machine(platform: str) -> Machine:
    """What a platform's kernels do in their own way; only a GPU's do."""
    if platform == "cuda":
        rotates = rotate, _rotate_by_product, _rotate_by_product
        logs = dict(log=_log, log2=_log2, log2_of_negative=_log2_of_negative)
        quick = dict(logs, sqrt=_sqrt, cos_sin=_cos_sin)
        exact = dict(full_log=_full_log, erf_inv=_erf_inv, fma=_fma)
        shared = dict(inverse=columns.inverse, sums=columns.sums, exchanged=columns.exchanged)
        sorting = {**_sorting(), **shared}
        return Machine(_opaque, _product, rotates, **exact, **quick, **sorting)
    if platform == "rocm":
        return Machine(product=_product_of_halves, **_sorting())
    return PLAIN


def _sorting() -> dict[str, Callable]:
    from jax.experimental.pallas import triton as plgpu

    return dict(
        ascending=network.ascending,
        inverse=lambda places, _: network.inverse(places),
        sums=None,
        ascending_rows=bitonic.ascending,
        barrier=plgpu.debug_barrier,
    )


def _opaque(a: jax.Array, *others: jax.Array) -> jax.Array:
    """The compiler would otherwise regroup the sums of the first rounds of Threefry with those that
    made the counter, and need 180 instructions rather than 127 for a Gumbel variate (sm_90)."""
    moved = ptx("mov.b32 $0, $1;", "=r,r" + ",r" * len(others), jnp.int32, a, *others)
    return moved.astype(jnp.uint32)  # the lowering has no unsigned results


def _product(a: jax.Array, b: np.uint32) -> tuple[jax.Array, jax.Array]:
    """The lowering has no `lax.mulhi`. The assembler merges two of the same wide multiplication."""
    wide = "{{ .reg .b64 w; .reg .b32 other; mul.wide.u32 w, $1, $2; mov.b64 {{{}}}, w; }}"
    halves = (wide.format("other, $0"), wide.format("$0, other"))
    high, low = (ptx(half, "=r,r,r", jnp.int32, a, b).astype(jnp.uint32) for half in halves)
    return high, low


def _rotate_by_product(a: jax.Array, places: int) -> jax.Array:
    """The shifts of all rotations would keep one unit busy while the multipliers wait.

    Of the ceiling of an argmax, 395 G variates/s if every second is a product, 406 if two of three
    are (sm_90).
    """
    high, low = _product(a, np.uint32(1 << places))
    return high | low


def _product_of_halves(a: jax.Array, b: np.uint32) -> tuple[jax.Array, jax.Array]:
    """The high word by 16-bit halves, none of whose products overflow."""
    half, low = np.uint32(16), np.uint32(0xFFFF)
    b0, b1 = np.uint32(b & low), np.uint32(b >> half)
    middle = (a >> half) * b0 + (((a & low) * b0) >> half)
    other = (a & low) * b1 + (middle & low)
    return (a >> half) * b1 + (middle >> half) + (other >> half), a * b


def _log2(a: jax.Array) -> jax.Array:
    return ptx("lg2.approx.ftz.f32 $0, $1;", "=f,f", jnp.float32, a)


def _log2_of_negative(a: jax.Array) -> jax.Array:
    """In one instruction, and where Triton negates a selected value, in another two."""
    negated = "{ .reg .f32 n; neg.f32 n, $1; lg2.approx.ftz.f32 $0, n; }"
    return ptx(negated, "=f,f", jnp.float32, a)


def _log(a: jax.Array) -> jax.Array:
    """By the hardware's binary logarithm: two instructions, where `log` takes eighteen."""
    return _log2(a) * np.float32(np.log(2))


def _full_log(a: jax.Array) -> jax.Array:
    """In five or six instructions less than `jnp.log` (sm_90)."""
    return functions.log(a, _fma)


def _erf_inv(a: jax.Array) -> jax.Array:
    return functions.erf_inv(a, _fma)


def _sqrt(a: jax.Array) -> jax.Array:
    return ptx("sqrt.approx.ftz.f32 $0, $1;", "=f,f", jnp.float32, a)


def _cos_sin(turn: jax.Array) -> tuple[jax.Array, jax.Array]:
    a = turn.astype(jnp.int32).astype(jnp.float32) * ANGLE
    cos, sin = (
        ptx(f"{name}.approx.ftz.f32 $0, $1;", "=f,f", jnp.float32, a) for name in ("cos", "sin")
    )
    return cos, sin


def _fma(a, b, c) -> jax.Array:
    """The lowering does not contract a product and a sum."""
    return ptx("fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", jnp.float32, a, b, c)


def power_of_two(n: int) -> int:
    """Smallest power of two that is at least n: Triton has no other tile sizes."""
    return 1 << (n - 1).bit_length()
