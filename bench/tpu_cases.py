"""What is compiled for TPUs and counted: every kernel, and whole estimators, ours and optax's."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Case:
    """One program and the noise variates that it needs.

    Attributes:
        make: () -> (function, shapes of its arguments); called when jax may be imported.
        variates: what the estimator needs, padding not included.
    """

    name: str
    make: Callable[[], tuple[Callable, tuple]]
    variates: int


def _primitive(name: str, batch: int, d: int, num_samples: int, *, rng: str, **params):
    """Kernel `name` as it is lowered for a TPU, on one leaf of shape [batch, d]."""
    import jax
    import jax.numpy as jnp

    from perturbk import implementations
    from perturbk.kernels.streams import STREAMS

    def shape(*dims, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dims, dtype)

    score = name.startswith("score")
    rows = (1, 1, batch * d) if score else (1, 1, batch, d)
    sigma = shape(1, 1, 1) if score else shape(1, 1, 1, 1)
    operands = [shape(1, 2, num_samples, dtype=jnp.uint32), shape(*rows), sigma]
    if name == "samples_and_dot":
        operands += [shape(1, 1, batch * d), shape(1, 1, 1), shape(1, 1, batch * d)]
    elif name in ("op_dot", "score_dot"):
        operands.append(shape(*rows))
    elif name != "samples":
        operands.append(shape(1, 1, num_samples))
    params |= dict(implementation="pallas", stream=STREAMS[rng](d))
    return functools.partial(implementations.run, name, "tpu", **params), tuple(operands)


def _estimator(library: str, op: str, what: str, batch: int, d: int, num_samples: int):
    """The whole program of a call: optax's, or ours by implementation."""
    import jax
    import jax.numpy as jnp
    from optax import perturbations

    import perturbk

    funs = {
        "argmax": lambda x: jax.nn.one_hot(jnp.argmax(x, -1), d),
        "ranking": lambda x: jnp.argsort(jnp.argsort(x, axis=-1), axis=-1),
        "top_k_5": lambda x: jnp.sum(jax.nn.one_hot(jax.lax.top_k(x, 5)[1], d), -2),
    }
    if library == "optax":
        f = perturbations.make_perturbed_fun(funs[op], num_samples, 0.5)
    else:
        f = perturbk.make_perturbed_fun(funs[op], num_samples, 0.5, implementation=library)

    def value(key, x):
        return f(key, x)

    def value_and_grad(key, x):
        return jax.value_and_grad(lambda x: jnp.sum(f(key, x) ** 2))(x)

    shapes = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((batch, d), jnp.float32)
    return {"value": value, "value and gradient": value_and_grad}[what], shapes


_WORKLOAD = (128, 1000, 1000)  # rows, coordinates, samples
_RANKED = (6, 16, 32, 64, 100, 256, 1024)


def _case(label: str, make: Callable, *shape: int, **params) -> Case:
    name = f"{label}, {' x '.join(map(str, shape))}"
    return Case(name, functools.partial(make, *shape, **params), math.prod(shape))


def kernels() -> Iterator[Case]:
    """Every kernel as a TPU gets it: whole primitives, with what XLA does around the kernel."""

    def kernel(
        primitive: str, noise: str, *shape: int, op: str = "", rng: str = "jax", **params
    ) -> Case:
        if op:
            params |= dict(op=op, inner=1)
        make = functools.partial(_primitive, primitive)
        label = f"{op} {primitive} {noise}".strip()
        if params.get("order", 1) > 1:
            label += " h_{order} z^{power}".format(**params)
        label += "" if rng == "jax" else f" {rng}"
        return _case(label, make, *shape, noise=noise, rng=rng, **params)

    for noise in ("gumbel", "normal"):
        for op in ("argmax", "top_k_5"):
            for shape in (_WORKLOAD, (128, 100, 1000), (1, 100000, 200)):
                yield kernel("samples", noise, *shape, op=op)
            yield kernel("samples_and_dot", noise, *_WORKLOAD, op=op)
            yield kernel("op_sum", noise, *_WORKLOAD, op=op)
            yield kernel("op_dot", noise, *_WORKLOAD, op=op)
        yield kernel("score_dot", noise, *_WORKLOAD, order=1, power=0)
        yield kernel("score_sum", noise, *_WORKLOAD, order=1, power=0)
        yield kernel("score_sum", noise, *_WORKLOAD, order=2, power=1)
        yield kernel("op_sum", noise, 128, 100, 1000, op="ranking")
        for rng in ("threefry_pair", "hardware"):
            for primitive in ("samples", "op_sum", "op_dot"):
                yield kernel(primitive, noise, *_WORKLOAD, op="argmax", rng=rng)
            yield kernel("samples", noise, 128, 100, 1000, op="argmax", rng=rng)
            for primitive in ("score_dot", "score_sum"):
                yield kernel(primitive, noise, *_WORKLOAD, order=1, power=0, rng=rng)
    yield kernel("samples", "gumbel", 1, 100000, 200, op="argmax", rng="threefry_pair")
    yield kernel("samples", "gumbel", *_WORKLOAD, op="top_k_5", rng="threefry_pair")
    yield kernel("samples", "gumbel", 128, 99, 1000, op="argmax", rng="threefry_pair")
    for rng in ("threefry_pair", "hardware"):
        for d in (64, 100):
            yield kernel("op_sum", "gumbel", 128, d, 1000, op="ranking", rng=rng)
    for shape in ((1, 100000, 200), (128, 6, 1000)):
        yield kernel("samples", "gumbel", *shape, op="argmax", rng="hardware")
    yield kernel("samples_and_dot", "gumbel", *_WORKLOAD, op="argmax", rng="hardware")
    yield kernel("samples", "gumbel", *_WORKLOAD, op="top_k_5", rng="hardware")
    for d in _RANKED:
        if d != 100:
            yield kernel("op_sum", "gumbel", 128, d, 1000, op="ranking")
    yield kernel("samples", "gumbel", 128, 100, 1000, op="ranking")
    yield kernel("samples_and_dot", "gumbel", 128, 100, 1000, op="ranking")
    yield kernel("op_dot", "gumbel", 128, 100, 1000, op="ranking")
    for op in ("ranking_descending", "ranking_nan_first"):
        yield kernel("op_sum", "gumbel", 128, 16, 1000, op=op)
    for d in (16, 100, 1024):
        yield kernel("op_sum", "gumbel", 128, d, 1000, op="sort")
    for primitive in ("samples_and_dot", "op_dot"):
        yield kernel(primitive, "gumbel", 128, 100, 1000, op="sort")
    for k in (1, 10, 32):
        yield kernel("samples", "gumbel", *_WORKLOAD, op=f"top_k_{k}")
    yield kernel("op_sum", "gumbel", *_WORKLOAD, op="top_k_32")
    yield kernel("op_sum", "gumbel", *_WORKLOAD, op="top_k_indices_5")


def programs() -> Iterator[Case]:
    """Whole estimators: XLA's program for optax's, and ours."""
    for op, *shape in (
        ("argmax", *_WORKLOAD),
        ("argmax", 128, 100, 1000),
        ("ranking", 128, 100, 1000),
        ("ranking", 128, 1024, 1000),
        ("top_k_5", 128, 6, 1000),
        ("top_k_5", 128, 100, 1000),
        ("top_k_5", *_WORKLOAD),
    ):
        for what in ("value", "value and gradient"):
            for library in ("optax", "pallas"):
                make = functools.partial(_estimator, library, op, what)
                yield _case(f"{op} {what} by {library}", make, *shape)
    what = "value and gradient"
    for op, *shape in (  # few samples
        ("argmax", 128, 1000, 10),
        ("ranking", 128, 100, 40),
        ("top_k_5", 128, 100, 40),
    ):
        for library in ("optax", "xla"):
            make = functools.partial(_estimator, library, op, what)
            yield _case(f"{op} {what} by {library}", make, *shape)
