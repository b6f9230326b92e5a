"""Fused TPU kernels of the ops: samples, sums and products, as `xla.py` defines them."""

from __future__ import annotations

import jax

from perturbk.kernels import argmax, tpu_argmax, tpu_ranking


def samples(keys, x, sigma, *, op: str, **static) -> jax.Array:
    """Codes of every sample: [groups, shared, rows, (d,) N]."""
    if op == "argmax":
        return tpu_argmax.winners(keys, x, sigma, **static)
    return tpu_ranking.samples(keys, x, sigma, op=op, **static)


def op_sum(keys, x, sigma, weights, *, op: str, **static) -> jax.Array:
    """sum_s W_s op(x + sigma z_s): weights [groups, shared, N] -> [groups, shared, rows, d]."""
    if op == "argmax":
        winners = tpu_argmax.winners(keys, x, sigma, **static)
        return argmax.weighted_by_comparison(winners, weights, x.shape[-1])
    return tpu_ranking.op_sum(keys, x, sigma, weights, op=op, **static)


def op_dot(keys, x, sigma, cotangent, *, op: str, **static) -> jax.Array:
    """<op(x + sigma z_s), g> per sample: g [groups, shared, rows, d] -> [groups, shared, N]."""
    if op == "argmax":
        winners = tpu_argmax.winners(keys, x, sigma, **static)
        return argmax.dot_by_comparison(winners, cotangent)
    return tpu_ranking.op_dot(keys, x, sigma, cotangent, op=op, **static)
