"""Weights that are one and carry derivatives, and sums under them.

The DiCE estimator (Foerster et al. 2018, arXiv 1802.05098) in the form in which XLA evaluates each
part once, and rightly.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_jvp
def one_with_log(log_density: jax.Array) -> jax.Array:
    """exp(l - stop_gradient(l)), which is one, for which l need not be evaluated."""
    # A plain `ones_like` would not be mapped where its tangent is: JAX then loses a batch axis.
    always = jnp.full(log_density.shape, True)
    return lax.select(always, jnp.ones_like(log_density), log_density)


@one_with_log.defjvp
def _(primals, tangents):
    one = one_with_log(*primals)
    return one, one * tangents[0]


@jax.custom_jvp
def weighted_sum(w: jax.Array, f: jax.Array, base: jax.Array | None) -> jax.Array:
    """sum_s [W_s f_s + (1 - W_s) base], or without the second term: [N], [N, ...] -> [...]."""
    v = w.reshape(-1, *[1] * (f.ndim - 1))
    return jnp.sum(v * f if base is None else v * f + (1 - v) * base[None], 0)


@functools.partial(weighted_sum.defjvp, symbolic_zeros=True)
def _weighted_sum_jvp(primals, tangents):
    """The cotangent of a weight is a dot product here.

    As a sum of products, which JAX would make of it, XLA on a CPU with jax 0.10 fuses it with the
    sum over samples that follows, and the gradient is wrong for some batches.
    """
    w, f, base = primals
    dw, df, dbase = tangents
    out = weighted_sum(*primals)
    terms = []
    if not is_zero(dw):
        f0 = f if base is None else f - base[None]
        # Flat, for its transpose would else move the samples behind the outputs.
        flat = jnp.einsum("s,sk->k", dw, f0.reshape(dw.size, -1), precision=lax.Precision.HIGHEST)
        terms.append(flat.reshape(f0.shape[1:]))
    if not is_zero(df):
        terms.append(weighted_sum(w, df, None))
    if base is not None and not is_zero(dbase):
        terms.append(jnp.sum(1 - w) * dbase)
    return out, sum(terms, jnp.zeros_like(out))


def is_zero(tangent) -> bool:
    """Whether a tangent in a rule of `jax.custom_jvp` is a symbolic zero."""
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)
