"""What is measured: a workload, by perturbk or by optax, its value or its value and gradient."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax import perturbations

import perturbk
from perturbk.demo_measure import max_difference, temp_bytes
from workloads import WORKLOADS, Workload

# Else a call on a CPU is handed to another thread, whose waking takes longer than a small program.
jax.config.update("jax_cpu_enable_async_dispatch", False)

LIBRARIES = ("perturbk", "optax")
# "perturbk", followed by the stream or the implementation that is named.
_NAMED: dict[str, dict[str, Any]] = {
    "perturbk": {},
    "perturbk philox": dict(rng="philox"),
    **{f"perturbk {name}": dict(implementation=name) for name in ("xla", "pallas", "triton")},
    "perturbk triton philox": dict(implementation="triton", rng="philox"),
}
KINDS = ("value", "value and gradient")

_TOLERANCE = 1e-5  # of the largest entry: float32 sums of up to a million terms, in another order
_CHEAP = 1 << 18  # variates of a workload that is run only once


@dataclasses.dataclass(frozen=True)
class Case:
    """One workload and kind, under jit, by both libraries on the same arguments."""

    workload: Workload
    kind: str

    @property
    def name(self) -> str:
        return f"{self.workload.name}, {self.kind}"

    @functools.cached_property
    def arguments(self) -> tuple[jax.Array, ...]:
        """(key or keys, x, weights of the output in the gradient)."""
        x = self.workload.x()
        return self.workload.key(), x, jax.random.normal(jax.random.key(3), x.shape)

    def compiled(self, library: str) -> jax.stages.Compiled:
        """The program of `arguments`; each is compiled once."""
        return _compiled(self, library)

    def call(self, library: str) -> Callable[[], Any]:
        return functools.partial(self.compiled(library), *self.arguments)

    def temp_bytes(self, library: str) -> int:
        return temp_bytes(self.compiled(library))

    def check(self, ours: Any, theirs: Any, tolerance: float = _TOLERANCE) -> float:
        """Largest difference of two results, of the largest entry.

        Raises:
            AssertionError: it is more than the tolerance, which is that of rounding.
        """
        worst = 0.0
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert jnp.all(jnp.isfinite(a)), f"{self.name}: the result is not finite"
            difference, largest = max_difference(a, b)
            assert difference <= tolerance * largest, (
                f"{self.name}: differs from optax by {difference:.1e} of {largest:.1e}"
            )
            worst = max(worst, difference / (largest or 1))
        return worst


@functools.cache
def _compiled(case: Case, library: str) -> jax.stages.Compiled:
    w = case.workload
    make = perturbations.make_perturbed_fun
    if library != "optax":
        make = functools.partial(perturbk.make_perturbed_fun, **_NAMED[library])
    f = w.perturbed(make)

    def value(key: jax.Array, x: jax.Array, weights: jax.Array) -> jax.Array:
        del weights
        return f(key, x)

    def value_and_gradient(key: jax.Array, x: jax.Array, weights: jax.Array):
        out, pullback = jax.vjp(lambda x: f(key, x), x)
        return out, pullback(weights.astype(out.dtype))[0]

    program = value if case.kind == "value" else value_and_gradient
    return jax.jit(program).lower(*case.arguments).compile()


def cases(*, cheap: bool = False) -> list[Case]:
    """All cases; cheap ones have the same shapes of x and fewer samples."""
    workloads = WORKLOADS
    if cheap:
        workloads = tuple(
            dataclasses.replace(
                w, num_samples=min(w.num_samples, max(2, _CHEAP // (w.batch * w.d)))
            )
            for w in WORKLOADS
        )
    return [Case(w, kind) for w in workloads for kind in KINDS]
