"""Triton's interpreter in place of a GPU: `launch` runs kernels with numpy, under jit as well."""

from __future__ import annotations

import contextlib
import importlib
import os

import jax
import numpy as np

KERNELS = (
    "noise",
    "philox",
    "streams",
    "rows",
    "argmax",
    "ranking",
    "topk",
    "score",
    "ops",
    "products",
)


def load() -> None:
    """Imports Triton and our kernels such that the interpreter runs them, not the compiler.

    The variable is read when a kernel is defined. It is unset again: it would reach the tests that
    compile in processes of their own.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module("triton.experimental.gluon")  # which the interpreter looks at
        for name in KERNELS:
            importlib.import_module(f"perturbk.kernels.triton_{name}")
    finally:
        del os.environ["TRITON_INTERPRET"]


class _Storage:
    def __init__(self, array: np.ndarray):
        self.array = array

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def cpu(self) -> _Storage:
        return _Storage(self.array.copy())

    def copy_(self, other: _Storage) -> None:
        self.array[...] = other.array


class _Tensor:
    """As much of torch.Tensor as the interpreter uses, on a numpy array; torch is not needed."""

    device = "cpu"

    def __init__(self, array: np.ndarray):
        import triton.language as tl

        self.storage = _Storage(array)
        self.shape = array.shape
        self.dtype = getattr(tl, str(array.dtype))

    def untyped_storage(self) -> _Storage:
        return self.storage

    def data_ptr(self) -> int:
        return self.storage.data_ptr()

    def new_empty(self, *_, **__) -> _Tensor:
        return object.__new__(_Tensor)

    def set_(self, storage: _Storage, *_) -> None:
        self.__init__(storage.array)

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.shape

    def stride(self) -> tuple[int, ...]:
        array = self.storage.array
        return tuple(s // array.itemsize for s in array.strides)


def launch(kernel, operands, outputs, programs, constants):
    """What `perturbk.kernels.triton.LAUNCHER` asks for."""

    def run(*arrays):
        # Filled with what no kernel writes, so that an element that is left out is seen.
        results = [np.full(out.shape, _unwritten(out.dtype), out.dtype) for out in outputs]
        tensors = [_Tensor(np.array(a)) for a in (*arrays, *results)]
        with np.errstate(all="ignore"), _language_patched_once():
            kernel[(programs,)](*tensors, **constants)
        return [t.storage.array for t in tensors[len(arrays) :]]

    return jax.pure_callback(run, list(outputs), *operands)


@contextlib.contextmanager
def _language_patched_once():
    """The interpreter would patch Triton's language at each call of a device function, too.

    That is half of its time, and changes nothing after the first call of a file's functions.
    """
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set()

    def first(function):
        scope = None
        if function.__module__ not in patched:
            patched.add(function.__module__)
            scope = patch(function)
        return scope

    interpreter._patch_lang = first
    try:
        yield
    finally:
        interpreter._patch_lang = patch


def _unwritten(dtype) -> float:
    return np.nan if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max
