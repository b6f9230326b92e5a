"""Argmax of each perturbed row: the code of a sample is its winner's index.

It is kept in the smallest type that holds it, since it may be kept for derivatives. Ties go to the
first index and the first NaN wins, as in `jnp.argmax`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.draws import Draws, perturbed
from perturbk.kernels.held import held
from perturbk.kernels.ranking import code_dtype
from perturbk.kernels.tuning import TUNING

_LARGEST = np.float32(np.finfo(np.float32).max)


def first_max(y: jax.Array, axis: int) -> jax.Array:
    """Index of the first maximum (or first NaN) along `axis`, int32.

    The same as `jnp.argmax`, as two plain reductions: XLA vectorises these, whereas an argmax
    fused with the noise costs ten times as much on a CPU. There its maximum may pass over NaN.
    """
    size = np.int32(y.shape[axis])
    index = lax.broadcasted_iota(jnp.int32, y.shape, axis % y.ndim)
    top, nan = jnp.max(y, axis, keepdims=True), y != y
    first = jnp.min(jnp.where(nan, index - size, jnp.where(y == top, index, size)), axis)
    return jnp.where(first < 0, first + size, first)


def _first_top(y: jax.Array, axis: int) -> jax.Array:
    """The same where no value is NaN."""
    index = lax.broadcasted_iota(jnp.int32, y.shape, axis)
    top = jnp.max(y, axis, keepdims=True)
    return jnp.min(jnp.where(y == top, index, np.int32(y.shape[axis])), axis)


def without_nan(x: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and sigma with which a plain maximum finds the winner that `first_max` finds.

    The noise is finite, so a row with a NaN in x or sigma has its winner there, in every sample:
    the first of them gets +inf and the rest of the row -inf. An infinite sigma becomes finite.
    """
    nan = (x != x) | (sigma != sigma)
    index = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    first = jnp.min(jnp.where(nan, index, np.int32(x.shape[-1])), -1, keepdims=True)
    certain = jnp.where(index == first, np.float32(np.inf), np.float32(-np.inf))
    x = jnp.where(first < np.int32(x.shape[-1]), certain, x)
    return x, jnp.clip(jnp.where(sigma != sigma, np.float32(1), sigma), -_LARGEST, _LARGEST)


def stored_together(d: int, shared: int, in_fours: bool) -> int:
    """How many variates `codes` stores as one; `in_fours` as in `Stream`."""
    return 4 if shared == 1 and (d >= TUNING.fours_from or in_fours) else 1


def codes(draw: Draws, x: jax.Array, sigma: jax.Array, num_lanes: int) -> jax.Array:
    """Winners of a block: unsigned [rows, shared, lanes].

    Args:
        draw: uint32 coordinates [rows, k, lanes] -> noise z of the same shape.
        x: [rows, shared, d]; the `shared` vectors of a row see the same noise.
        sigma: [rows, shared, 1] or [rows, shared, d].
        num_lanes: samples in the block.
    """
    _, shared, d = x.shape
    x, sigma = without_nan(x, sigma)
    if stored_together(d, shared, draw.in_fours) == 4:
        winner = _in_fours(draw, x[:, 0], sigma[:, 0], num_lanes)[:, None]
    else:
        x, sigma = lax.optimization_barrier((x, sigma))
        winner = _first_top(perturbed(draw, x, sigma, num_lanes, lambda y: y), 2)
    return winner.astype(code_dtype(d))


def _in_fours(draw: Draws, x: jax.Array, sigma: jax.Array, num_lanes: int) -> jax.Array:
    """Stores only the maximum of four neighbours; draws the winning four once more.

    The noise is compute bound and the reduction memory bound, so storing a quarter of the values
    pays for drawing four of d again.
    """
    rows, d = x.shape
    fours = -(-d // 4)
    pad = ((0, 0), (0, fours * 4 - d))
    x = jnp.pad(x, pad, constant_values=-np.inf).reshape(rows, fours, 4)
    sigma = jnp.broadcast_to(sigma, (rows, d))
    sigma = jnp.pad(sigma, pad, constant_values=1).reshape(rows, fours, 4)
    x, sigma = lax.optimization_barrier((x, sigma))

    def largest(draw: Draws, x: jax.Array, sigma: jax.Array) -> jax.Array:
        place = lax.broadcasted_iota(jnp.uint32, (rows, fours, num_lanes), 1)
        best = None
        for i, a in enumerate(draw.drawn_four(place)):
            z = draw.apart(draw.math.variate, a) if draw.math.divided else draw.math.variate(a)
            y = x[:, :, i : i + 1] + sigma[:, :, i : i + 1] * z
            best = y if best is None else jnp.maximum(best, y)
        return best

    best = held(largest, draw, x, sigma, variates=4)
    winner = lax.optimization_barrier(_first_top(best, 1))
    xs, sigmas = (
        jnp.take_along_axis(a, winner[:, :, None], 1).swapaxes(1, 2) for a in (x, sigma)
    )  # [rows, 4, lanes]
    coordinate = winner[:, None].astype(jnp.uint32) * np.uint32(4)
    coordinate = coordinate + lax.broadcasted_iota(jnp.uint32, xs.shape, 1)
    y = held(lambda draw, *of: of[0] + of[1] * draw(of[2]), draw, xs, sigmas, coordinate)
    return winner * np.int32(4) + _first_top(y, 1)


def weighted(codes: jax.Array, weights: jax.Array, d: int) -> jax.Array:
    """sum_s W_s one_hot(winner_s): [..., rows, N] codes and [..., N] weights -> [..., rows, d]."""
    if d <= TUNING.compare_most:
        return weighted_by_comparison(codes, weights, d)
    scatter = functools.partial(_weighted_by_scatter, d=d)
    compare = functools.partial(weighted_by_comparison, d=d)
    # A TPU scatters one element at a time, and a GPU in no certain order.
    return lax.platform_dependent(codes, weights, cpu=scatter, default=compare)


def weighted_by_comparison(codes: jax.Array, weights: jax.Array, d: int) -> jax.Array:
    w = jnp.broadcast_to(weights[..., None, :], codes.shape)
    return jnp.sum(jnp.where(_is_winner(codes, d), w[..., None, :], 0.0), -1)


def _is_winner(codes: jax.Array, d: int) -> jax.Array:
    """The one-hot outputs, with the samples last: [..., N] -> [..., d, N]."""
    axis, codes = codes.ndim - 1, codes.astype(jnp.int32)
    index = lax.broadcasted_iota(jnp.int32, (*(1,) * axis, d, 1), axis)
    return codes[..., None, :] == index


def _weighted_by_scatter(codes: jax.Array, weights: jax.Array, d: int) -> jax.Array:
    w = jnp.broadcast_to(weights[..., None, :], codes.shape)
    codes = codes.astype(jnp.int32)
    flat, w = codes.reshape(-1, codes.shape[-1]), w.reshape(-1, codes.shape[-1])
    row = lax.broadcasted_iota(jnp.int32, flat.shape, 0)
    out = jnp.zeros((flat.shape[0], d), w.dtype)
    out = out.at[row, flat].add(w, mode="promise_in_bounds")
    return out.reshape(*codes.shape[:-1], d)


def dot(codes: jax.Array, cotangent: jax.Array) -> jax.Array:
    """<one_hot(winner_s), g>, summed over rows: [..., rows, N] and [..., rows, d] -> [..., N]."""
    # A TPU gathers one element at a time.
    return lax.platform_dependent(codes, cotangent, tpu=dot_by_comparison, default=_dot_by_gather)


def dot_by_comparison(codes: jax.Array, cotangent: jax.Array) -> jax.Array:
    winner = _is_winner(codes, cotangent.shape[-1])
    return jnp.sum(jnp.where(winner, cotangent[..., None], 0.0), (-3, -2))


def _dot_by_gather(codes: jax.Array, cotangent: jax.Array) -> jax.Array:
    return jnp.sum(picked(codes, cotangent), -2)


def picked(codes: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The cotangent of each winner: [..., rows, N] and [..., rows, d] -> [..., rows, N]."""
    flat = codes.reshape(-1, codes.shape[-1]).astype(jnp.int32)
    g = cotangent.reshape(flat.shape[0], cotangent.shape[-1])
    row = lax.broadcasted_iota(jnp.int32, flat.shape, 0)
    return g.at[row, flat].get(mode="promise_in_bounds").reshape(codes.shape)
