"""The k largest of each perturbed row: the code of a sample is its k winners' indices.

They come in descending order, ties by the lower index, as in `lax.top_k`, in the smallest type that
holds them, since they may be kept for derivatives. A sample with k winners is worth k samples with
one each, so that sums and products are those of argmax.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels import argmax
from perturbk.kernels.draws import Draws, perturbed
from perturbk.kernels.ranking import code_dtype
from perturbk.kernels.tuning import TUNING

LAST = np.int32(np.iinfo(np.int32).min)  # behind every key
_NONE = np.int32(np.iinfo(np.int32).max)  # behind every index


def total_order(y: jax.Array) -> jax.Array:
    """int32 keys in the order of `lax.top_k`: -NaN < -inf < ... < -0 < +0 < ... < inf < NaN."""
    return jnp.maximum(_turned(lax.bitcast_convert_type(y, jnp.int32)), LAST + np.int32(1))


def _turned(bits: jax.Array) -> jax.Array:
    """The bits of floats as integers in the same order; its own inverse."""
    return bits ^ (bits >> 31 & np.int32(0x7FFFFFFF))


def largest(key: jax.Array, k: int, group: int) -> jax.Array:
    """Indices of the k largest keys along axis -2 (lanes last), descending: int32 [..., k, lanes].

    The keys lie in groups of neighbours, each with its first. A winner is the first of the firsts,
    and makes way for the next of its group: k times d/group + group steps rather than k times d.
    """
    *lead, d, lanes = key.shape
    groups = -(-d // group)
    padding = [(0, 0, 0)] * key.ndim
    padding[-2] = (0, groups * group - d, 0)
    key = lax.pad(key, LAST, padding)
    member = lax.broadcasted_iota(jnp.int32, (*lead, groups, group, lanes), key.ndim - 1)
    which = lax.broadcasted_iota(jnp.int32, (*lead, groups, lanes), key.ndim - 2)
    of_group = which * np.int32(group)
    firsts = _first(key.reshape(member.shape), member + of_group[..., None, :], True)
    member = member[..., 0, :, :]

    def step(firsts, _):
        tops, args = firsts
        top = jnp.max(tops, -2, keepdims=True)
        winner = jnp.min(jnp.where(tops == top, args, _NONE), -2, keepdims=True)
        top, winner = lax.optimization_barrier((top, winner))
        home = winner // np.int32(group)
        index = home * np.int32(group) + member
        others = key
        if groups > 1:
            others = jnp.take_along_axis(key, index, -2, mode="promise_in_bounds")
            others = lax.optimization_barrier(others)
        # Whoever comes before the winner of its own group has won before.
        behind = (others < top) | ((others == top) & (index > winner))
        following = _first(others, index, behind)
        firsts = tuple(
            jnp.where(which == home, new, old) for new, old in zip(following, firsts, strict=True)
        )
        return firsts, winner[..., 0, :]

    _, winners = lax.scan(step, tuple(a[..., 0, :] for a in firsts), None, length=k)
    return jnp.moveaxis(winners, 0, -2)


def _first(key: jax.Array, index: jax.Array, among) -> tuple[jax.Array, jax.Array]:
    """(key, index) of the first of the largest keys along axis -2, which is kept."""
    top = jnp.max(jnp.where(among, key, LAST), -2, keepdims=True)
    first = jnp.min(jnp.where(among & (key == top), index, _NONE), -2, keepdims=True)
    return lax.optimization_barrier((top, first))


def codes(
    draw: Draws,
    x: jax.Array,
    sigma: jax.Array,
    num_lanes: int,
    *,
    k: int,
) -> jax.Array:
    """Winners of a block: unsigned [rows, shared, k, lanes]; arguments as in `argmax.codes`."""
    d = x.shape[-1]
    keys = perturbed(draw, x, sigma, num_lanes, total_order)

    def in_groups(keys):
        return largest(keys, k, min(d, TUNING.top_k_group))

    best = lax.platform_dependent(
        keys,
        # One element is gathered at a time: one group is all of the row.
        tpu=lambda keys: largest(keys, k, d),
        # Few samples would not fill the vector lanes.
        cpu=functools.partial(_by_rows, k=k) if num_lanes < TUNING.vector_lanes else in_groups,
        default=in_groups,
    )
    return best.astype(code_dtype(d))


def _by_rows(key: jax.Array, k: int) -> jax.Array:
    """The same as `largest`, one lane after the other."""
    y = lax.bitcast_convert_type(_turned(key), jnp.float32)
    return lax.top_k(y.swapaxes(-1, -2), k)[1].swapaxes(-1, -2)


def weighted(codes: jax.Array, weights: jax.Array, d: int) -> jax.Array:
    """sum_s W_s k_hot(winners_s): [..., rows, k, N] and weights [..., N] -> [..., rows, d]."""

    def as_argmax(codes, weights):
        *lead, k, num_samples = codes.shape
        codes = codes.reshape(*lead, k * num_samples)
        return argmax.weighted(codes, jnp.tile(weights, k), d)

    compare = functools.partial(weighted_by_comparison, d=d)
    return lax.platform_dependent(codes, weights, cpu=as_argmax, default=compare)


def weighted_by_comparison(codes: jax.Array, weights: jax.Array, d: int) -> jax.Array:
    return jnp.sum(jnp.where(_is_winner(codes, d), weights[..., None, None, :], 0.0), -1)


def _is_winner(codes: jax.Array, d: int) -> jax.Array:
    """The k-hot outputs, with the samples last: [..., k, N] -> [..., d, N].

    A TPU takes half the cycles if it compares with all winners of a sample before it adds.
    """
    axis = codes.ndim - 2
    index = lax.broadcasted_iota(jnp.int32, (*(1,) * axis, d, 1), axis)
    codes = codes.astype(jnp.int32)
    hits = [codes[..., i : i + 1, :] == index for i in range(codes.shape[-2])]
    return functools.reduce(jnp.logical_or, hits)


def dot(codes: jax.Array, cotangent: jax.Array) -> jax.Array:
    """<k_hot(winners_s), g>, summed over rows: [..., k, N] and [..., rows, d] -> [..., N]."""

    def as_argmax(codes, cotangent):
        *lead, k, num_samples = codes.shape
        codes = codes.reshape(*lead, k * num_samples)
        each = argmax.dot(codes, cotangent)
        return jnp.sum(each.reshape(*each.shape[:-1], k, num_samples), -2)

    def one_by_one(codes, cotangent):  # the k values of a sample are never stored
        each = (argmax.picked(codes[..., i, :], cotangent) for i in range(codes.shape[-2]))
        return jnp.sum(functools.reduce(jnp.add, each), -2)

    return lax.platform_dependent(
        codes, cotangent, cpu=as_argmax, tpu=dot_by_comparison, default=one_by_one
    )


def dot_by_comparison(codes: jax.Array, cotangent: jax.Array) -> jax.Array:
    winner = _is_winner(codes, cotangent.shape[-1])
    return jnp.sum(jnp.where(winner, cotangent[..., None], 0.0), (-3, -2))
