"""The ops on Triton kernels: what is launched for the operations of `xla.py`, and the padding.

A *plane* is one (group, shared vector, row). Every program owns its outputs, and partial results
are put together outside, in a fixed order: no atomics, and the same bits in every run.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from perturbk.kernels import argmax, topk, triton_argmax, triton_ranking, triton_topk
from perturbk.kernels.ops import op_math
from perturbk.kernels.sorting import IN_ORDER, SORTS
from perturbk.kernels.triton import launch
from perturbk.kernels.triton_plan import Draws, Loop, cut, even_turns
from perturbk.kernels.tuning import TUNING


def samples(words, x, sigma, *, op: str, platform: str, **static) -> jax.Array:
    """Codes of every sample: [groups, shared, rows, *code, N]."""
    if op in IN_ORDER:
        return _InOrder(words, x, sigma, op, platform, **static).codes()
    draws = _draws(words, x, sigma, platform, **static)
    if op == "argmax":
        codes = _winners(words, x, sigma, draws, platform)
    else:
        _, _, k = op.rpartition("_")
        codes = _top_k(words, x, sigma, int(k), draws, platform)
    return codes.astype(op_math(op).code_dtype(draws.d))


def op_sum(words, x, sigma, weights, *, op: str, platform: str, **static) -> jax.Array:
    """sum_s W_s op(x + sigma z_s): weights [groups, shared, N] -> [groups, shared, rows, out]."""
    if op in IN_ORDER:
        return _InOrder(words, x, sigma, op, platform, **static).weighted(weights)
    codes = samples(words, x, sigma, op=op, platform=platform, **static)
    if op.startswith("top_k_indices"):
        return op_math(op).weighted(codes, weights, x.shape[3])
    return _k_hot_sums(
        codes.reshape(*x.shape[:3], -1, words.shape[2]), weights, x.shape[3], platform
    )


def op_dot(words, x, sigma, cotangent, *, op: str, platform: str, **static) -> jax.Array:
    """<op(x + sigma z_s), g> per sample: g [groups, shared, rows, out] -> [groups, shared, N]."""
    if op in IN_ORDER:
        return _InOrder(words, x, sigma, op, platform, **static).dot(cotangent)
    codes = samples(words, x, sigma, op=op, platform=platform, **static)
    return op_math(op).dot(codes, cotangent)


def _draws(words, x, sigma, platform: str, **static) -> Draws:
    one_sigma = sigma.shape[3] == 1
    return Draws.of(words, x.shape, platform=platform, one_sigma=one_sigma, **static)


def _by_plane(a: jax.Array, shape: tuple[int, ...], width: int, fill: float) -> jax.Array:
    """Broadcasts to `shape`, [groups, shared, rows, d], then pads: [planes, width]."""
    a = jnp.broadcast_to(a, shape).reshape(-1, shape[3])
    return jnp.pad(a, ((0, 0), (0, width - shape[3])), constant_values=fill)


def _rows(x: jax.Array, sigma: jax.Array, width: int, fill: float) -> list[jax.Array]:
    """x by plane, and sigma likewise, or one number for each plane if it has but one."""
    one_sigma = sigma.shape[3] == 1
    shape, sigma_width = (*x.shape[:3], sigma.shape[3]), 1 if one_sigma else width
    return [_by_plane(x, x.shape, width, fill), _by_plane(sigma, shape, sigma_width, 1)]


def _arrays(*outputs) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs]


def _winners(words, x, sigma, draws: Draws, platform: str) -> jax.Array:
    """Codes of the argmax: int32 [groups, shared, rows, N]."""
    planes = x.size // draws.d
    loop = cut(draws.d, draws.num_samples, planes, together=draws.together)
    shape = (planes, loop.pieces, draws.num_samples)
    best, arg = launch(
        triton_argmax.winners,
        [words, *_rows(x, sigma, loop.width, -np.inf)],
        _arrays((shape, jnp.float32), (shape, jnp.int32)),
        planes=planes,
        name=f"argmax_winners_{draws.noise}",
        platform=platform,
        DRAWS=draws,
        LOOP=loop,
    )
    if loop.pieces > 1:
        arg = jnp.take_along_axis(arg, argmax.first_max(best, 1)[:, None], 1)
    return arg.reshape(*x.shape[:3], draws.num_samples)


def _top_k(words, x, sigma, k: int, draws: Draws, platform: str) -> jax.Array:
    """Codes of the k largest: int32 [groups, shared, rows, k, N]."""
    planes, turns_from = x.size // draws.d, k * TUNING.triton_top_k_turns_from
    # Twice as long, pieces draw little again.
    least = max(TUNING.triton_piece_least, 2 * turns_from)
    loop = cut(draws.d, draws.num_samples, planes, together=draws.together, least=least)
    shape = (planes, loop.pieces, k, draws.num_samples)
    key, arg = launch(
        triton_topk.winners,
        [words, *_rows(x, sigma, loop.width, 0)],
        _arrays((shape, jnp.int32), (shape, jnp.int32)),
        planes=planes,
        name=f"top_k_{k}_winners_{draws.noise}",
        platform=platform,
        K=k,
        BY_TURNS=loop.piece >= turns_from,
        DRAWS=draws,
        LOOP=loop,
    )
    if loop.pieces > 1:
        # Each piece's are in order, and pieces too: of equal keys the lower index comes first.
        key, arg = (a.reshape(planes, -1, draws.num_samples) for a in (key, arg))
        arg = jnp.take_along_axis(arg, topk.largest(key, k, k), 1)
    return arg.reshape(*x.shape[:3], k, draws.num_samples)


def _k_hot_sums(winners: jax.Array, weights: jax.Array, d: int, platform: str) -> jax.Array:
    """sum_s W_s k_hot(winners_s): winners [groups, shared, rows, k, N].

    XLA would scatter with atomics, in any order.
    """
    groups, shared, rows, k, num_samples = winners.shape
    planes, length = groups * shared * rows, k * num_samples
    loop = cut(length, d, planes)
    (out,) = launch(
        triton_argmax.one_hot_sums,
        [winners, jnp.tile(weights, k)],  # k winners of one sample are worth one of k samples
        _arrays(((planes, loop.pieces, d), jnp.float32)),
        planes=planes,
        name="argmax_sum",
        platform=platform,
        N=length,
        D=d,
        ROWS=rows,
        LOOP=loop,
    )
    return jnp.sum(out, 1).reshape(groups, shared, rows, d)


class _InOrder:
    """The launches of the kernels of rankings and sorts; one instance per call."""

    def __init__(self, words, x, sigma, op: str, platform: str, **static):
        self.draws = _draws(words, x, sigma, platform, **static)
        self.op, self.platform, self.shape = op, platform, x.shape
        self.planes = x.size // self.draws.d
        turn = TUNING.triton_ranking_unroll
        self.width, self.turn = even_turns(self.draws.d, turn, self.draws.together)
        self.operands = [words, *_rows(x, sigma, self.width, 0)]
        # A program for each block of samples.
        self.loop = cut(1, self.draws.num_samples, self.planes)

    def padded(self, a: jax.Array) -> jax.Array:
        return _by_plane(a, self.shape, self.width, 0)

    def codes(self) -> jax.Array:
        num_samples, dtype = self.draws.num_samples, op_math(self.op).code_dtype(self.draws.d)
        shape = (self.planes, self.draws.d, num_samples)
        return self.launch(triton_ranking.codes, "samples", [], shape, dtype, self.loop).reshape(
            *self.shape, num_samples
        )

    def weighted(self, weights: jax.Array) -> jax.Array:
        # A program for each run of blocks, which it goes through.
        runs = cut(self.loop.blocks, 1, self.planes, turn=1, least=1)
        loop = dataclasses.replace(runs, piece=runs.piece * runs.lanes)
        shape = (self.planes, loop.pieces, self.width)
        out = self.launch(triton_ranking.weighted, "sum", [weights], shape, jnp.float32, loop)
        return jnp.sum(out, 1)[:, : self.draws.d].reshape(self.shape)

    def dot(self, cotangent: jax.Array) -> jax.Array:
        shape, g = (self.planes, self.draws.num_samples), self.padded(cotangent)
        out = self.launch(triton_ranking.dot, "dot", [g], shape, jnp.float32, self.loop)
        return jnp.sum(out.reshape(*self.shape[:3], -1), 2)

    def launch(self, kernel, name: str, extra, shape, dtype, loop: Loop) -> jax.Array:
        (out,) = launch(
            kernel,
            [*self.operands, *extra],
            _arrays((shape, dtype)),
            planes=self.planes,
            name=f"{self.op}_{name}_{self.draws.noise}",
            platform=self.platform,
            WIDTH=self.width,
            TURN=self.turn,
            OP=SORTS[self.op].ranking if self.op in SORTS else self.op,
            VALUES=self.op in SORTS,
            DRAWS=self.draws,
            LOOP=loop,
        )
        return out
