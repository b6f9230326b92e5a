"""Fused kernels of the ops: draw the noise, apply the op, accumulate, store nothing of size N x d.

One program takes one row and a run of samples. Coordinates lie along axis 0 of a tile (sublanes
on a TPU), samples along axis 1 (lanes). Each program owns its outputs and partial sums are added
outside, so results do not depend on the order of execution.

Operands are those of `xla.py`, cut by `pallas_launch.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from perturbk.kernels.ops import keeps_codes, of_rows
from perturbk.kernels.pallas import machine
from perturbk.kernels.pallas_launch import Launch
from perturbk.kernels.pallas_rows import fill_to, summed
from perturbk.kernels.streams import THREEFRY


def samples(keys, x, sigma, *, op, noise, inner, platform, stream=THREEFRY) -> jax.Array:
    """Codes of every sample: [groups, shared, rows, *code, N]."""
    plan = Launch(keys, x, sigma, op=op, noise=noise, inner=inner, platform=platform, stream=stream)

    def body(scratch_ref, *refs):
        *row_refs, out_ref = refs
        row_at = plan.rows_of(scratch_ref, *row_refs)

        def tile(lane, carry):
            row = row_at(lane)
            if plan.kernel.summary:
                plan.store(plan.summary(row), out_ref, lane)
                return carry

            def store(t, carry):
                tile = plan.kernel.outputs(row, (), t)
                out_ref[plan.out_at(t), lane] = tile.astype(out_ref.dtype)
                return carry

            return plan.over_outputs(store, carry)

        plan.over_lanes(tile)

    spec, shape = plan.codes
    (codes,) = plan.run(body, f"{op}_samples_{noise}", [], [], [spec], [shape])
    return plan.joined(codes, keys)


def samples_and_dot(
    keys, x, sigma, t, *, op, noise, inner, platform, stream=THREEFRY
) -> tuple[jax.Array, jax.Array] | None:
    """(codes of every sample, <h_1(z), t> [groups, shared, N]) in one pass over the noise.

    t: the tangent of the leaf, [groups, shared, E]. None for rankings that are counted.
    """
    plan = Launch(keys, x, sigma, op=op, noise=noise, inner=inner, platform=platform, stream=stream)
    summary = plan.kernel.summary
    if summary is None:
        return None

    def body(scratch_ref, *refs):
        *row_refs, t_ref, code_ref, dot_ref = refs
        row_at = plan.rows_of(scratch_ref, *row_refs)

        def tile(lane, carry):
            numbers, dot_ref[:, lane] = summary(row_at(lane), t_ref)
            plan.store(numbers, code_ref, lane)
            return carry

        plan.over_lanes(tile)

    tangent = plan.tangent(of_rows(t, x, inner))
    spec, shape = plan.codes
    codes, dot = plan.run(
        body,
        f"{op}_samples_and_dot_{noise}",
        [tangent],
        [plan.column_spec(tangent.shape[1])],
        [spec, plan.sample_spec(1)],
        [shape, jax.ShapeDtypeStruct((plan.planes, 1, plan.padded), jnp.float32)],
    )
    dot = dot[..., : plan.num_samples].reshape(plan.groups, plan.shared, -1, plan.num_samples)
    return plan.joined(codes, keys), jnp.sum(dot, 2)


def op_sum(keys, x, sigma, weights, *, op, noise, inner, platform, stream=THREEFRY) -> jax.Array:
    """sum_s W_s op(x + sigma z_s): [groups, shared, rows, out], one pass over the noise."""
    which = dict(op=op, noise=noise, inner=inner, platform=platform, stream=stream)
    plan = Launch(keys, x, sigma, sums=True, **which)
    # With a sample in each lane, a program would add up lanes at every coordinate: for an argmax 20
    # instructions each (sm_90), where XLA's takes 8 over the winners.
    winners = plan.kernel.best is not None and plan.kernel.outputs is not None
    few = winners and keeps_codes(op, plan.shared * plan.rows, plan.d, plan.num_samples)
    if plan.pieces > 1 or few:
        return plan.op.weighted(samples(keys, x, sigma, **which), weights, plan.d)

    def body(scratch_ref, *refs):
        *row_refs, weights_ref, out_ref = refs
        row_at = plan.rows_of(scratch_ref, *row_refs)

        def clear(t, carry):
            out_ref[plan.out_at(t), :] = jnp.zeros((plan.out_tile, 1), jnp.float32)
            return carry

        def tile(lane, carry):
            row = row_at(lane)
            summary, w = plan.summary(row), weights_ref[0:1, lane]

            def add(t, carry):
                code, at = plan.kernel.outputs(row, summary, t), plan.out_at(t)
                terms = w * plan.op.output(code, w)
                out_ref[at, :] = out_ref[at, :] + jnp.sum(terms, 1, keepdims=True)
                return carry

            return plan.over_outputs(add, carry)

        def tile_of_numbers(lane, totals):
            w, numbers = weights_ref[0:1, lane], plan.summary(row_at(lane))
            pairs = zip(totals, numbers, strict=True)
            return tuple(_added(plan, total, number, w) for total, number in pairs)

        if plan.kernel.outputs:
            plan.over_outputs(clear, 0)
            plan.over_lanes(tile)
            return
        count, height = plan.summary_shape
        start = (jnp.zeros((height, plan.lanes), jnp.float32),) * count

        def run_of_numbers(run):
            totals = plan.over_lanes(tile_of_numbers, start, run)
            if height == 1:
                totals = (_side_by_side(totals, plan.out_width),)
            out_ref[pl.ds(run * plan.out_width, plan.out_width), :] = jnp.sum(totals[0], 1)[:, None]

        plan.over_runs(run_of_numbers)

    weights = plan.per_sample(weights).reshape(plan.groups * plan.shared, 1, -1)
    rows = plan.program_runs * plan.out_width
    (out,) = plan.run(
        body,
        f"{op}_sum_{noise}",
        [weights],
        [plan.sample_spec(1, plan.rows)],
        [pl.BlockSpec((None, None, rows, 1), lambda p, b: (p, b, 0, 0))],
        [jax.ShapeDtypeStruct((plan.planes, plan.programs, rows, 1), jnp.float32)],
    )
    out = out.reshape(plan.planes, -1, plan.out_width)
    return jnp.sum(out, 1)[:, : plan.out].reshape(*x.shape[:3], plan.out)


def op_dot(keys, x, sigma, cotangent, *, op, noise, inner, platform, stream=THREEFRY) -> jax.Array:
    """<op(x + sigma z_s), g> per sample: [groups, shared, N], one pass over the noise."""
    which = dict(op=op, noise=noise, inner=inner, platform=platform, stream=stream)
    plan = Launch(keys, x, sigma, **which)
    if plan.pieces > 1:
        return plan.op.dot(samples(keys, x, sigma, **which), cotangent)

    def body(scratch_ref, *refs):
        *row_refs, g_ref, out_ref = refs
        row_at = plan.rows_of(scratch_ref, *row_refs)

        def product(lane) -> jax.Array:
            row = row_at(lane)
            summary = plan.summary(row)
            if not plan.kernel.outputs:
                total = jnp.zeros(summary[0].shape, jnp.float32)
                for i, number in enumerate(summary):
                    total = _added(plan, total, number, g_ref[plan.place(i)])
                return summed(total)

            def add(t, total):
                code = plan.kernel.outputs(row, summary, t)
                return _added(plan, total, code, g_ref[plan.out_at(t), :])

            total = plan.over_outputs(add, jnp.zeros((plan.out_tile, plan.lanes), jnp.float32))
            return summed(total)

        def tile(lane, carry):
            out_ref[:, lane] = product(lane)
            return carry

        plan.over_lanes(tile)

    (out,) = plan.run(
        body,
        f"{op}_dot_{noise}",
        [plan.column(fill_to(cotangent, plan.out_tile, 0))],
        [plan.column_spec(plan.out_width)],
        [plan.sample_spec(1)],
        [jax.ShapeDtypeStruct((plan.planes, 1, plan.padded), jnp.float32)],
    )
    out = out[..., : plan.num_samples].reshape(plan.groups, plan.shared, plan.rows, -1)
    return jnp.sum(out, 2)


def _added(plan: Launch, total: jax.Array, code: jax.Array, factor: jax.Array) -> jax.Array:
    """total + factor * the output that numbers of a code stand for."""
    return machine(plan.platform).fma(factor, plan.op.output(code, factor), total)


def _side_by_side(totals: Sequence[jax.Array], width: int) -> jax.Array:
    """So many [1, lanes] or fewer as one [width, lanes], a power of two, padded with zeros.

    Added up over lanes one by one, each would make all threads wait twice.
    """
    totals = [*totals, *[jnp.zeros_like(totals[0])] * (width - len(totals))]
    while len(totals) > 1:
        halves = totals[: len(totals) // 2], totals[len(totals) // 2 :]
        totals = [jnp.stack(pair, -1) for pair in zip(*halves, strict=True)]
    tile = totals[0][0]
    return tile.reshape(tile.shape[0], width).T
