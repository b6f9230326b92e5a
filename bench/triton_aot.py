"""Compiling the Triton kernels with the triton wheel alone: no GPU, no jax-triton, no CUDA."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

_TYPES = {"float32": "fp32", "int32": "i32", "uint32": "u32", "uint8": "u8", "uint16": "u16"}


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of a kernel, and all that its compilation needs."""

    kernel: Any
    pointers: tuple[str, ...]  # Triton's types of the operands and outputs
    constants: dict[str, object]

    def compile(self, backend: str, arch: int | str):
        """The compiled kernel; backend "cuda" with arch 90, or "hip" with "gfx942"."""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        from perturbk.kernels.triton import backend_options, num_warps

        signature = dict.fromkeys(self.constants, "constexpr")
        names = [name for name in self.kernel.arg_names if name not in signature]
        signature |= dict(zip(names, self.pointers, strict=True))
        signature = {name: signature[name] for name in self.kernel.arg_names}
        source = ASTSource(self.kernel, signature, self.constants, self._alignment(names))
        target = GPUTarget(backend, arch, 64 if backend == "hip" else 32)
        platform = "rocm" if backend == "hip" else "cuda"
        options = dict(num_warps=num_warps(), num_stages=1, **backend_options(platform))
        return triton.compile(source, target=target, options=options)

    def _alignment(self, names: list[str]) -> dict:
        # XLA's buffers lie on multiples of 16 bytes.
        at = [self.kernel.arg_names.index(name) for name in names]
        return {(i,): [["tt.divisibility", 16]] for i in at}


def launches(primitive: str, platform: str, *operands, **params) -> list[Launch]:
    """The launches that a primitive's lowering for `platform` makes; operands may be shapes."""
    import jax
    import jax.numpy as jnp

    from perturbk import implementations
    from perturbk.kernels import triton

    found = []

    def record(kernel, operands, outputs, programs, constants):
        types = tuple("*" + _TYPES[a.dtype.name] for a in (*operands, *outputs))
        found.append(Launch(kernel, types, dict(constants)))
        return [jnp.zeros(out.shape, out.dtype) for out in outputs]

    before, triton.LAUNCHER = triton.LAUNCHER, record
    try:
        run: Callable = functools.partial(implementations.run, primitive, platform)
        jax.eval_shape(functools.partial(run, implementation="triton", **params), *operands)
    finally:
        triton.LAUNCHER = before
    return found
