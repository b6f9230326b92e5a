"""Which output leaves of a user's function are ops that have kernels.

The function is traced, and the equations behind each output leaf are compared, in canonical form,
with those of every known spelling at the leaf's shape and dtype. Equal equations are equal
functions, so nothing is ever taken for an op that it is not; an unknown spelling only costs speed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from perturbk.jaxprs import Cone, Program, Traced, canonical
from perturbk.kernels.ops import op_math
from perturbk.kernels.tuning import TUNING
from perturbk.spellings import SPELLINGS, Op


@dataclasses.dataclass(frozen=True)
class Match:
    """An output leaf that is an op of one input leaf.

    Attributes:
        leaf: index of the input leaf.
        op: the op, applied to that whole leaf.
        dtype: in which `fun` returns it.
    """

    leaf: int
    op: Op
    dtype: jnp.dtype


@dataclasses.dataclass(frozen=True)
class Miss:
    """An output leaf that is no known op, and why."""

    reason: str


def recognise(traced: Traced, n_in_leaves: int) -> tuple[Match | Miss, ...]:
    """What each output leaf is.

    Args:
        traced: from `trace`.
        n_in_leaves: number of its input leaves; what comes before them is closed over.
    """
    if traced.jaxpr.effects:
        # Evaluating only some of the output leaves would lose them.
        effects = ", ".join(sorted(map(str, traced.jaxpr.effects)))
        return tuple(Miss(f"fun has side effects: {effects}") for _ in traced.jaxpr.outvars)
    program = canonical(traced.jaxpr, inline=True)
    n_consts = len(program.inputs) - n_in_leaves
    return tuple(_output(program, i, n_consts) for i in range(len(program.outputs)))


def _output(program: Program, index: int, n_consts: int) -> Match | Miss:
    cone = program.cone(index)
    if cone.closes_over or any(i < n_consts for i in cone.inputs):
        return Miss("it closes over arrays")
    if not cone.inputs:
        return Miss("it does not depend on x")
    first, *others = cone.inputs
    if others:
        leaves = [i - n_consts for i in cone.inputs]
        return Miss(f"it depends on several leaves of x: {leaves}")
    heads = _HEADS.intersection(cone.names)
    names = ", ".join((*cone.names[:8], "...") if len(cone.names) > 8 else cone.names)
    unknown = Miss(f"not a known argmax, ranking, sort or top-k: {names}")
    if not heads:
        return unknown
    shape, dtype = program.inputs[first]
    if not jnp.issubdtype(dtype, jnp.floating):
        return Miss(f"its leaf of x is {dtype}, not floating")
    if odd := [d for d in (dtype, *cone.dtypes) if not _holds(d, 0)]:
        return Miss(f"{odd[0]} does not hold real numbers, zero among them")
    context = jnp.result_type(int), jax.sharding.get_abstract_mesh()
    program = cone.program()
    numbers = _numbers(program)
    table = _table(shape, dtype, cone.dtypes[0], heads, numbers, context)
    op = table.get(program)
    if op is None:
        return unknown
    if numbers and max(numbers) > TUNING.top_k_most:
        return Miss(f"k is {max(numbers)}, and kernels take up to {TUNING.top_k_most}")
    largest_of = op_math(op.name).largest
    if largest_of is None:
        if rounds := [d for d in (dtype, *cone.dtypes) if d != jnp.float32]:
            return Miss(f"its values are {rounds[0]}, and kernels have float32")
        return Match(first - n_consts, op, cone.dtypes[-1])
    largest = largest_of(shape[op.axis])
    for d in cone.dtypes:
        if not _holds(d, largest):
            return Miss(f"{d} does not hold {largest}, which is among its values")
    return Match(first - n_consts, op, cone.dtypes[-1])


def _numbers(program: Program) -> tuple[int, ...]:
    """The k for which spellings of ops of a number are tried: those that appear in a program."""
    params = (dict(e.params) for e in program.equations if e.primitive.name == "top_k")
    return tuple(dict.fromkeys(p["k"][1] for p in params))


_HEADS = frozenset(s.head for s in SPELLINGS)


@functools.lru_cache(maxsize=512)
def _table(
    shape: tuple[int, ...],
    dtype,
    out_dtype,
    heads: frozenset[str],
    numbers: tuple[int, ...],
    context: tuple,
) -> dict[Program, Op]:
    """Canonical forms of all spellings at one shape and dtype."""
    del context  # x64 and the mesh in use change what the spellings trace to
    x = jax.ShapeDtypeStruct(shape, dtype)
    table: dict[Program, Op] = {}
    # The lines of the table are ours: the user's strict settings are not meant for them.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for spelling in SPELLINGS:
            for k in numbers if spelling.sized else (None,):
                if spelling.head in heads:
                    for op, f in spelling.forms(len(shape), out_dtype, k):
                        if k is None or k <= shape[op.axis]:
                            table[_cone(f, x).program()] = op
    return table


def _cone(f: Callable[[jax.Array], jax.Array], x: jax.ShapeDtypeStruct) -> Cone:
    return canonical(jax.make_jaxpr(f)(x), inline=True).cone(0)


def _holds(dtype, largest: int) -> bool:
    """Whether all integers from 0 to `largest` are exact in a dtype."""
    if jnp.issubdtype(dtype, jnp.floating):
        # Some of the 8-bit formats end before 2**nmant, and one has no zero.
        ends = np.array([0, largest], np.float32)
        exact = np.array_equal(ends.astype(dtype).astype(np.float32), ends)
        return exact and largest <= 2 ** (jnp.finfo(dtype).nmant + 1)
    if jnp.issubdtype(dtype, jnp.integer):
        return largest <= jnp.iinfo(dtype).max
    return jnp.issubdtype(dtype, jnp.bool_) and largest <= 1
