"""Fused TPU kernels of the ops: samples, sums and products, as `xla.py` defines them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from perturbk.kernels import tpu_argmax, tpu_ranking, tpu_topk
from perturbk.kernels.ops import entry, of_rows, op_math
from perturbk.kernels.sorting import IN_ORDER


def _top_k(k: int) -> Callable[..., tuple[jax.Array, list[jax.Array]]]:
    return functools.partial(tpu_topk.winners, k=k)


# Ops of which a kernel finds the winners, few enough to be stored; those of `IN_ORDER` are not.
_WINNERS = {"argmax": tpu_argmax.winners}
_SIZED_WINNERS = {"top_k": _top_k, "top_k_indices": _top_k}


def samples(keys, x, sigma, **static) -> jax.Array:
    """Codes of every sample: [groups, shared, rows, *code, N]."""
    codes, _ = _samples(keys, x, sigma, None, **static)
    return codes


def samples_and_dot(keys, x, sigma, t, *, inner: int, **static) -> tuple[jax.Array, jax.Array]:
    """(codes of every sample, <h_1(z), t> [groups, shared, N]) in one pass over the noise.

    t: the tangent of the leaf, [groups, shared, E].
    """
    codes, (product,) = _samples(keys, x, sigma, of_rows(t, x, inner), inner=inner, **static)
    return codes, product


def _samples(keys, x, sigma, t, *, op: str, **static) -> tuple[jax.Array, list[jax.Array]]:
    if op in IN_ORDER:
        return tpu_ranking.samples(keys, x, sigma, t, op=op, **static)
    return entry(op, _WINNERS, _SIZED_WINNERS)(keys, x, sigma, t, **static)


def op_sum(keys, x, sigma, weights, *, op: str, **static) -> jax.Array:
    """sum_s W_s op(x + sigma z_s): weights [groups, shared, N] -> [groups, shared, rows, out]."""
    if op in IN_ORDER:
        return tpu_ranking.op_sum(keys, x, sigma, weights, op=op, **static)
    winners = samples(keys, x, sigma, op=op, **static)
    return op_math(op).weighted(winners, weights, x.shape[-1])


def op_dot(keys, x, sigma, cotangent, *, op: str, **static) -> jax.Array:
    """<op(x + sigma z_s), g> per sample: g [groups, shared, rows, out] -> [groups, shared, N]."""
    if op in IN_ORDER:
        return tpu_ranking.op_dot(keys, x, sigma, cotangent, op=op, **static)
    return op_math(op).dot(samples(keys, x, sigma, op=op, **static), cotangent)
