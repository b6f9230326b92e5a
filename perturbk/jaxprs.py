"""Jaxprs in a canonical form, a `Program`, in which names, source locations and the order of
tracing do not matter. It has two variants:

- inlined, to compare values: calls are replaced by what they compute, including functions with
  their own derivative rule;
- not inlined, as a key for compiled programs: rules and contexts matter and are part of the form.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from perturbk.values import hashable

Ref = tuple[Any, ...]  # ("input", i), ("output", equation, j), ("literal", ...) or ("const", ...)

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_IDENTITIES = {"stop_gradient", "copy"}


@dataclasses.dataclass(frozen=True)
class Equation:
    """One application of a primitive, its parameters in hashable form."""

    primitive: Any
    params: tuple
    inputs: tuple[Ref, ...]
    outputs: tuple[Any, ...]
    context: Any = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A jaxpr in canonical form; inputs are the arrays closed over, then the arguments.

    Inputs and equations' outputs are (shape, dtype) in the inlined form, avals in the other.
    """

    inputs: tuple[Any, ...]
    equations: tuple[Equation, ...]
    outputs: tuple[Ref, ...]

    def cone(self, index: int) -> Cone:
        """What output `index` of an inlined program depends on, less conversions at its end."""
        ref, dtypes = self.outputs[index], []
        while ref[0] == "output" and (eqn := self.equations[ref[1]]):
            dtypes.append(eqn.outputs[ref[2]][1])
            if eqn.primitive.name != "convert_element_type":
                break
            ref = eqn.inputs[0]
        if ref[0] == "input":
            dtypes.append(self.inputs[ref[1]][1])

        needed, inputs, closes_over = set(), set(), False
        if ref[0] == "output":
            needed.add(ref[1])
        for i in range(max(needed, default=-1), -1, -1):
            for kind, *at in self.equations[i].inputs if i in needed else ():
                closes_over |= kind == "const"
                if kind != "literal" and kind != "const":
                    (needed if kind == "output" else inputs).add(at[0])
        if ref[0] == "input":
            inputs.add(ref[1])
        closes_over |= ref[0] == "const"
        names = dict.fromkeys(self.equations[i].primitive.name for i in sorted(needed))
        dtypes.reverse()
        return Cone(self, ref, tuple(dtypes), tuple(sorted(inputs)), closes_over, tuple(names))


@dataclasses.dataclass(frozen=True)
class Cone:
    """The part of a program behind one output.

    Attributes:
        whole: the inlined program.
        output: what the output refers to before the conversions at its end.
        dtypes: of `output`, and after each of these conversions.
        inputs: the inputs of the program that take part.
        closes_over: whether arrays within a nested call take part.
        names: the primitives, each once.
    """

    whole: Program
    output: Ref
    dtypes: tuple[Any, ...]
    inputs: tuple[int, ...]
    closes_over: bool
    names: tuple[str, ...]

    def program(self) -> Program:
        """The cone by itself, in the order of use, equal equations made one."""
        inputs = {i: k for k, i in enumerate(self.inputs)}
        equations: dict[Equation, int] = {}
        renamed: dict[int, int] = {}

        def rename(ref: Ref) -> Ref:
            if ref[0] == "input":
                return "input", inputs[ref[1]]
            return ("output", renamed[ref[1]], ref[2]) if ref[0] == "output" else ref

        # A stack rather than recursion: unrolled loops are deep.
        stack = [self.output[1]] if self.output[0] == "output" else []
        while stack:
            eqn = self.whole.equations[stack[-1]]
            first = (r[1] for r in eqn.inputs if r[0] == "output" and r[1] not in renamed)
            if (missing := next(first, None)) is not None:
                stack.append(missing)
                continue
            eqn = dataclasses.replace(eqn, inputs=tuple(map(rename, eqn.inputs)))
            renamed[stack.pop()] = equations.setdefault(eqn, len(equations))
        avals = tuple(self.whole.inputs[i] for i in self.inputs)
        return Program(avals, tuple(equations), (rename(self.output),))


def canonical(jaxpr: Jaxpr | ClosedJaxpr, *, inline: bool) -> Program:
    """The canonical form, see the head of this file."""
    variables = _inputs(jaxpr)
    equations: list[Equation] = []
    outputs = _walk(jaxpr, [("input", i) for i in range(len(variables))], equations, inline)
    avals = tuple(_aval(v.aval, inline) for v in variables)
    return Program(avals, tuple(equations), tuple(outputs))


# Not inlined and inlined. JAX keeps the jaxpr of a jitted function from one call to the next.
_forms = weakref.WeakKeyDictionary[Any, Hashable](), weakref.WeakKeyDictionary[Any, Hashable]()


def _form(jaxpr: Jaxpr | ClosedJaxpr, inline: bool) -> Hashable:
    """The form of a jaxpr within another, with its constants."""
    known = _forms[inline]
    if jaxpr not in known:
        form = functools.partial(_form, inline=inline)
        consts = tuple(hashable(c, form) for c in getattr(jaxpr, "consts", ()))
        known[jaxpr] = canonical(jaxpr, inline=inline), consts
    return known[jaxpr]


def _literal(atom: Literal, form: Callable[[Any], Hashable]) -> Hashable:
    """Its value in the dtype that it is used in."""
    dtype = getattr(atom.aval, "dtype", None)
    if isinstance(dtype, np.dtype) and isinstance(atom.val, int | float | complex | np.ndarray):
        return np.asarray(atom.val, dtype).tobytes()
    return hashable(atom.val, form)


def _inputs(jaxpr: Jaxpr | ClosedJaxpr) -> list:
    return [*getattr(jaxpr, "jaxpr", jaxpr).constvars, *getattr(jaxpr, "jaxpr", jaxpr).invars]


def _walk(jaxpr, inputs: list[Ref], equations: list[Equation], inline: bool) -> list[Ref]:
    """Appends the equations of a jaxpr; returns what its outputs refer to."""
    env = dict(zip(_inputs(jaxpr), inputs, strict=True))
    form = functools.partial(_form, inline=inline)

    def read(atom) -> Ref:
        if isinstance(atom, Literal):
            return "literal", _aval(atom.aval, inline), _literal(atom, form)
        return env[atom]

    for eqn in jaxpr.eqns:
        refs = [read(a) for a in eqn.invars]
        name = eqn.primitive.name
        if inline and name in _CALLS:
            inner = eqn.params[_CALLS[name]]
            closed = [("const", hashable(c, form)) for c in getattr(inner, "consts", ())]
            outs = _walk(inner, closed + refs, equations, inline)
        elif inline and (name in _IDENTITIES or _converts_nothing(eqn)):
            outs = refs
        else:
            params = tuple(
                (k, hashable(v, form))
                for k, v in sorted(eqn.params.items())
                if not (k == "name" and name in _CALLS)
            )
            avals = tuple(_aval(v.aval, inline) for v in eqn.outvars)
            context = None if inline else eqn.ctx
            outs = [("output", len(equations), j) for j in range(len(avals))]
            equations.append(Equation(eqn.primitive, params, tuple(refs), avals, context))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(a) for a in jaxpr.outvars]


def _converts_nothing(eqn) -> bool:
    """Whether it is a conversion to the dtype at hand, which only makes a weak type strong."""
    if eqn.primitive.name != "convert_element_type":
        return False
    return eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype


def _aval(aval, inline: bool) -> Any:
    return (aval.shape, aval.dtype) if inline and hasattr(aval, "shape") else aval


class Traced:
    """A function of leaves as a jaxpr, without the arrays that it closes over.

    Two are equal if they compute the same and differentiate the same, by the same equations, so
    that it can be a static argument of `jax.jit`; the arrays may be tracers, and are passed
    beside it.
    """

    def __init__(self, jaxpr: Jaxpr):
        self.jaxpr = jaxpr
        self._key = canonical(jaxpr, inline=False)
        self._hash = hash(self._key)

    def __call__(self, consts: Sequence[Any], *leaves: jax.Array) -> list[jax.Array]:
        """Output leaves, from the arrays closed over and the input leaves."""
        return eval_jaxpr(self.jaxpr, consts, *leaves)

    @property
    def out_avals(self) -> list[Any]:
        """Shapes and dtypes of the output leaves."""
        return [v.aval for v in self.jaxpr.outvars]

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Traced):
            return NotImplemented
        return self._hash == other._hash and self._key == other._key


def trace(fun: Callable[[Any], Any], x: Any) -> tuple[Traced, list[Any], Any]:
    """Traces `fun` at a tree of arrays, tracers or avals.

    Returns:
        (traced, consts, tree of the output). consts are the arrays and tracers closed over.
    """
    # A new function on each call: make_jaxpr remembers what it traced by the identity of the
    # function, and would not see that a value which `fun` reads (an attribute, say) has changed.
    closed, shapes = jax.make_jaxpr(functools.partial(fun), return_shape=True)(x)
    j = closed.jaxpr
    # Since 0.12 a jaxpr holds its consts; this one does not.
    jaxpr = Jaxpr(j.constvars, j.invars, j.outvars, j.eqns, j.effects, j.debug_info)
    return Traced(jaxpr), list(closed.consts), jax.tree.structure(shapes)
