"""What XLA is to finish before anything that uses it begins, as a primitive.

How it is lowered depends on the platform, on the version of XLA and on the program around it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

from perturbk.kernels.tuning import TUNING

_DROPS_BARRIERS = jax.__version_info__ < (0, 11)
# Seen to hold of these. On another version a few variates are drawn as many are.
HAS_SMALL_CALLS = jax.__version_info__ < (0, 13)

_held_p = Primitive("perturbk_held")


def held(f: Callable[..., jax.Array], *operands, variates: int = 1) -> jax.Array:
    """f(*operands), elementwise, finished before anything that uses it begins.

    Fused into a reduction noise is drawn one by one, and into two of them twice, rounded in two
    ways. On a CPU few values are computed by the thread that runs the program: XLA gives some
    thousand variates to several, whose start takes 20 to 100 us.

    Args:
        f: of arrays alone; without sorts, scatters, products of matrices and calls of libraries.
        operands: pytrees of arrays, not known before the program runs. The first array is one that
            is there already, such as a key: a branch depends on it, so what makes it is made twice.
        variates: that one of f's values is made of.
    """
    jaxpr = jax.make_jaxpr(f)(*operands)
    return _held_p.bind(*jax.tree.leaves(operands), jaxpr=jaxpr, variates=variates)


@_held_p.def_impl
def _(*operands, jaxpr: ClosedJaxpr, variates: int):
    del variates
    return _call(jaxpr)(*operands)


@_held_p.def_abstract_eval
def _(*_, jaxpr: ClosedJaxpr, variates: int):
    del variates
    return jaxpr.out_avals[0]


def _batch(operands, dims, *, jaxpr: ClosedJaxpr, variates: int):
    # All of them at once: neither many small calls nor a branch for each.
    return held(jax.vmap(_call(jaxpr), dims), *operands, variates=variates), 0


batching.primitive_batchers[_held_p] = _batch


def _call(jaxpr: ClosedJaxpr) -> Callable[..., jax.Array]:
    return jax.jit(lambda *operands: jaxpr_as_fun(jaxpr)(*operands)[0])


def _behind_a_barrier(*operands, jaxpr: ClosedJaxpr) -> jax.Array:
    return lax.optimization_barrier(_call(jaxpr)(*operands))


def _in_a_branch(*operands, jaxpr: ClosedJaxpr) -> jax.Array:
    """XLA of jax 0.10 drops barriers on a CPU before it fuses, but fuses nothing into a branch."""
    return _kept_unless(_call(jaxpr)(*operands), operands[:1])


def _in_one_thread(*operands, jaxpr: ClosedJaxpr) -> jax.Array:
    """A small call, as XLA names it, is one kernel, for one thread.

    It aborts the process over an operand that goes unused, and under jax 0.10 does not compile if
    it ends in what XLA would give to several threads: hence a branch that depends on all operands.
    """

    @jax.jit
    def small(*operands) -> jax.Array:
        return _kept_unless(_call(jaxpr)(*operands), operands)

    return set_xla_metadata(small(*operands), xla_cpu_small_call="true", inlineable="false")


def _kept_unless(out: jax.Array, operands: Sequence[jax.Array]) -> jax.Array:
    """`out`, unless something of the operands that never holds, which XLA does not see."""
    some = (lax.bitcast_convert_type(a.reshape(-1)[0], jnp.uint8) for a in operands)
    byte = functools.reduce(jnp.bitwise_xor, (a.reshape(-1)[0] for a in some))
    return lax.cond(byte & np.uint8(1) > np.uint8(1), jnp.zeros_like, lambda a: a, out)


def _alone(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether the program is compiled here and now, for one device.

    Several may put communication into a call; what is exported, another XLA compiles.
    """
    context = ctx.module_context.axis_context
    here = not ctx.module_context.lowering_parameters.for_export
    return here and isinstance(context, mlir.ShardingContext) and context.num_devices == 1


def _lower_on_a_cpu(ctx: mlir.LoweringRuleContext, *operands, jaxpr: ClosedJaxpr, variates: int):
    size = math.prod(jaxpr.out_avals[0].shape) * variates
    few = isinstance(size, int) and size <= TUNING.one_thread_most
    if few and HAS_SMALL_CALLS and _alone(ctx):
        how = _in_one_thread
    else:
        how = _in_a_branch if _DROPS_BARRIERS else _behind_a_barrier
    return mlir.lower_fun(how, multiple_results=False)(ctx, *operands, jaxpr=jaxpr)


def _lower(ctx: mlir.LoweringRuleContext, *operands, jaxpr: ClosedJaxpr, variates: int):
    del variates
    rule = mlir.lower_fun(_behind_a_barrier, multiple_results=False)
    return rule(ctx, *operands, jaxpr=jaxpr)


mlir.register_lowering(_held_p, _lower)
mlir.register_lowering(_held_p, _lower_on_a_cpu, platform="cpu")
