"""What must hold on a device before anything is timed there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from gpu_programs import ANYWHERE, Program, Size, programs

import perturbk
from perturbk.kernels import reference
from perturbk.kernels.sorting import SORTS
from workloads import FUNS

# A GPU's logarithm differs from XLA's in the last bits, and so may, rarely, a winner.
_CODES = {"cpu": 0.0, "cuda": 1e-4}  # most codes that differ, of all
_SUMS = {"cpu": 1e-5, "cuda": 1e-3}  # of the largest entry


@dataclasses.dataclass(frozen=True)
class Estimator:
    """Of a vector, by every implementation."""

    op: str
    rng: str
    size: Size


Check = Program | Estimator


def checks(size: Size, ranked: Sequence[int], only: str) -> list[Check]:
    """All that must hold; ranks are checked at lengths of their own."""
    estimators = [Estimator(op, rng, size) for rng in ANYWHERE for op in FUNS if only in ("", op)]
    return [*programs(only, size, ranked), *estimators]


def check(what: Check, names: Sequence[str], platform: str) -> Callable[[], list[str]]:
    """Compiles; the call says what is wrong, and is empty if nothing is."""
    one = _kernel if isinstance(what, Program) else _estimator
    return one(what, names, platform)


def _kernel(program: Program, names: Sequence[str], platform: str) -> Callable[[], list[str]]:
    """A primitive by every implementation, against XLA's, and twice."""
    calls = {}
    for name in names:
        try:
            calls[name] = program.compiled(name, platform)
        except NotImplementedError as error:
            print(f"not run: {name} {program.name}: {error}", flush=True)

    def run() -> list[str]:
        faults, expected = [], _comparable(program, calls["xla"]())
        for name, call in calls.items():
            found, what = call(), f"{name} {program.name}"
            faults += _apart(what, _comparable(program, found), expected, platform)
            faults += _unrepeated(what, found, call())
        return faults

    return run


def _comparable(program: Program, out: Any) -> Any:
    """The codes of a sort are floats in disguise, of which the last bits may differ."""
    if program.op not in SORTS:
        return out
    value = SORTS[program.op].value
    return jax.tree.map(lambda a: value(a) if np.issubdtype(a.dtype, np.integer) else a, out)


def _estimator(what: Estimator, names: Sequence[str], platform: str) -> Callable[[], list[str]]:
    """Value and gradient of a whole estimator, against the specification."""
    size, fun, rng = what.size, FUNS[what.op], what.rng
    x = jax.random.normal(jax.random.key(4), (size.d,))
    key, weights = jax.random.key(5), jax.random.normal(jax.random.key(6), (size.d,))
    static: dict[str, Any] = dict(num_samples=size.num_samples, sigma=0.5)
    draw = reference.DRAWS[rng](key, "gumbel") if rng in reference.DRAWS else None

    def plain(x):
        return reference.perturbed_mean(fun, key, x, noise=perturbk.Gumbel(), draw=draw, **static)

    specified, calls = _value_and_gradient(plain, x, weights), {}
    for name in names:
        f = perturbk.make_perturbed_fun(fun, implementation=name, rng=rng, **static)
        try:
            calls[name] = _value_and_gradient(lambda x, f=f: f(key, x), x, weights)
        except NotImplementedError as error:
            print(f"not run: {name} {what.op} {rng}, value and gradient: {error}", flush=True)

    def run() -> list[str]:
        faults, expected = [], specified()
        for name, call in calls.items():
            told = f"{name} {what.op} {rng}, value and gradient"
            faults += _apart(told, call(), expected, platform)
        return faults

    return run


def _value_and_gradient(f, x, weights) -> Callable[[], Any]:
    def both(x):
        out, pullback = jax.vjp(f, x)
        return out, pullback(weights.astype(out.dtype))[0]

    return functools.partial(jax.jit(both).lower(x).compile(), x)


def _apart(what: str, found, expected, platform: str) -> Iterator[str]:
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a), np.asarray(e)
        if a.shape != e.shape or a.dtype != e.dtype:
            yield f"{what}: {a.dtype}{a.shape} instead of {e.dtype}{e.shape}"
        elif np.issubdtype(e.dtype, np.integer):
            if (apart := np.mean(a != e)) > _CODES[platform]:
                yield f"{what}: {apart:.1e} of the codes differ"
        elif not np.max(np.abs(a - e)) <= _SUMS[platform] * (np.max(np.abs(e)) or 1):
            yield f"{what}: off by {np.max(np.abs(a - e)):.1e} of {np.max(np.abs(e)):.1e}"


def _unrepeated(what: str, found, again) -> Iterator[str]:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        if not np.array_equal(a, b):
            yield f"{what}: two runs differ"
