"""What must hold on a device before anything is timed there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from gpu_programs import Program, Size, compiled, programs

import perturbk
from perturbk.kernels import reference
from perturbk.kernels.sorting import SORTS
from perturbk.kernels.streams import STREAMS
from workloads import FUNS

# A GPU's logarithm differs from XLA's in the last bits, and so may, rarely, a winner.
_CODES = {"cpu": 0.0, "cuda": 1e-4}  # most codes that differ, of all
_SUMS = {"cpu": 1e-5, "cuda": 1e-3}  # of the largest entry


def check_all(
    names: Sequence[str], platform: str, size: Size, ranked: Sequence[int], only: str
) -> list[str]:
    """What is wrong; empty if nothing is."""
    return [
        *_kernels(names, platform, programs(only, size, ranked)),
        *_estimators(names, platform, size, only),
    ]


def _kernels(names: Sequence[str], platform: str, wanted: Sequence[Program]) -> Iterator[str]:
    """Every primitive by every implementation, against XLA's, and twice."""
    calls = compiled([(name, program) for program in wanted for name in names], platform)
    for (name, program), call in calls.items():
        what = f"{name} {program.name}"
        if isinstance(call, NotImplementedError):
            print(f"not run: {what}: {call}", flush=True)
        elif name != "xla":
            found = call()
            pair = (_comparable(program, out) for out in (found, calls["xla", program]()))
            yield from _apart(what, *pair, platform)
            yield from _unrepeated(what, found, call())


def _comparable(program: Program, out: Any) -> Any:
    """The codes of a sort are floats in disguise, of which the last bits may differ."""
    if program.op not in SORTS:
        return out
    value = SORTS[program.op].value
    return jax.tree.map(lambda a: value(a) if np.issubdtype(a.dtype, np.integer) else a, out)


def _estimators(names: Sequence[str], platform: str, size: Size, only: str) -> Iterator[str]:
    """Value and gradient of whole estimators, against the specification."""
    x = jax.random.normal(jax.random.key(4), (size.d,))
    key, weights = jax.random.key(5), jax.random.normal(jax.random.key(6), (size.d,))
    static: dict[str, Any] = dict(num_samples=size.num_samples, sigma=0.5)
    for rng in STREAMS:
        draw = reference.DRAWS[rng](key, "gumbel") if rng in reference.DRAWS else None
        for op, fun in ((op, fun) for op, fun in FUNS.items() if only in ("", op)):

            def plain(x, fun=fun, draw=draw):
                return reference.perturbed_mean(
                    fun, key, x, noise=perturbk.Gumbel(), draw=draw, **static
                )

            expected = _value_and_gradient(plain, x, weights)
            for name in names:
                f = perturbk.make_perturbed_fun(fun, implementation=name, rng=rng, **static)
                what = f"{name} {op} {rng}, value and gradient"
                try:
                    found = _value_and_gradient(lambda x, f=f: f(key, x), x, weights)
                except NotImplementedError as error:
                    print(f"not run: {what}: {error}", flush=True)
                    continue
                yield from _apart(what, found, expected, platform)


def _value_and_gradient(f, x, weights):
    @jax.jit
    def both(x):
        out, pullback = jax.vjp(f, x)
        return out, pullback(weights.astype(out.dtype))[0]

    return both(x)


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
