"""Parameters and constants of jaxprs in hashable form, equal where they compute the same."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

_PLAIN = {bool, int, str, bytes, type(None)}
# What JAX keeps beside a derivative rule while it traces: no part of what the rule computes.
_TRACING = {"DebugInfo", "DynamicJaxprTrace", "EqualStore", "Store"}
_MEMO = {"cells", "sentinel"}
# JAX's objects that are what their attributes are, though they compare by identity or not at all.
_OPEN = {"ClosedRule", "CustomRoot", "custom_jvp", "custom_vjp", "custom_vmap"}


def hashable(value: Any, form: Callable[[Jaxpr | ClosedJaxpr], Hashable]) -> Hashable:
    """A value in hashable form; what is not understood is equal to itself only.

    A function is its code and what that refers to, for JAX and users make new closures on each
    call; `form` gives that of a jaxpr.
    """
    return (type(value), value) if type(value) in _PLAIN else _Walk(form)(value)


class _Identity:
    """Stands for an object that is equal only to itself, and keeps it alive."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value


class _Walk:
    """Walks one value. `seen` numbers what was met, for functions refer to each other."""

    def __init__(self, form: Callable[[Jaxpr | ClosedJaxpr], Hashable]):
        self.form = form
        self.seen: dict[int, tuple[int, Any]] = {}

    def __call__(self, value: Any) -> Hashable:
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if kind is tuple:
            return kind, tuple(map(self, value))
        if kind is set or kind is frozenset:
            return kind, frozenset(map(self, value))
        if isinstance(value, float):
            return float, value.hex()  # tells the zeros apart, and NaN equals itself
        if isinstance(value, np.integer):
            return int, int(value)
        if isinstance(value, np.ndarray | np.generic | complex):
            array = np.asarray(value)
            if array.dtype != object:
                return array.dtype, array.shape, array.tobytes()
        if isinstance(value, Jaxpr | ClosedJaxpr):
            return self.form(value)
        if kind.__name__ in _TRACING and kind.__module__.startswith("jax."):
            return kind
        parts = _parts(value)
        if parts is None:
            try:
                hash(value)
            except TypeError:
                return _Identity(value)
            return kind, value
        if id(value) in self.seen:
            return "seen", self.seen[id(value)][0]
        self.seen[id(value)] = len(self.seen), value  # kept, lest another object get its id
        return kind, tuple(map(self, parts))


def _parts(value: Any) -> Iterable[Any] | None:
    """The values that this one stands for, or None if it is not known to stand for others."""
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value)
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if type(value) is list:
        return value
    if type(value) is dict:
        return value.items()
    if not type(value).__module__.startswith("jax."):
        return None
    if (wrapped := getattr(value, "f_transformed", None)) is not None:  # jax's WrappedFun
        return (wrapped,)
    if isinstance(value, tuple):  # named
        return value
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if type(value).__name__ in _OPEN:
        return [v for name, v in vars(value).items() if not name.startswith("_")]
    if type(value).__name__ == "Unhashable":
        return (value.val,)
    return None


def _parts_of_function(f: types.FunctionType) -> list[Any]:
    memo = _MEMO if f.__module__ == "jax._src.interpreters.partial_eval" else ()
    cells = []
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        if name not in memo:
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not assigned yet
                cells.append(cell)
    return [f.__code__, _Identity(f.__globals__), f.__defaults__, f.__kwdefaults__, *cells]
