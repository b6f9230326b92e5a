"""NVIDIA's assembly in a kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def ptx(assembly: str, constraints: str, dtype, *args, pack: int = 1) -> jax.Array:
    """One result of the assembly for each element; its arguments broadcast.

    pack: elements of a thread that it takes at a time, of each result and argument in turn.
    """
    from jax.experimental.pallas import triton as plgpu

    shape = jnp.broadcast_shapes(*map(jnp.shape, args))
    (out,) = plgpu.elementwise_inline_asm(
        assembly,
        args=[jnp.broadcast_to(a, shape) for a in args],
        constraints=constraints,
        pack=pack,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, dtype)],
    )
    return out
