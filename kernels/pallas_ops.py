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
import numpy as np
from jax.experimental import pallas as pl

from perturbk.kernels.ops import keeps_codes, of_rows
from perturbk.kernels.pallas import machine
from perturbk.kernels.pallas_launch import Launch
from perturbk.kernels.pallas_rows import Row, fill_to, summed
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
                plan.store(plan.summary(row)[0], out_ref, lane)
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
    if plan.kernel.summary is None:
        return None

    def body(scratch_ref, *refs):
        *row_refs, t_ref, code_ref, dot_ref = refs
        row_at = plan.rows_of(scratch_ref, *row_refs)

        def tile(lane, carry):
            numbers, dot_ref[:, lane] = plan.summary(row_at(lane), t_ref)
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

        def run_of_outputs(run):
            def clear(t, carry):
                out_ref[plan.out_at(t, run), :] = jnp.zeros((plan.out_tile, 1), jnp.float32)
                return carry

            def tile(lane, carry):
                row = row_at(lane)
                (summary, _), w = plan.summary(row), weights_ref[0:1, lane]

                def add(t, carry):
                    code, at = plan.kernel.outputs(row, summary, t), plan.out_at(t, run)
                    terms = w * plan.op.output(code, w)
                    out_ref[at, :] = out_ref[at, :] + jnp.sum(terms, 1, keepdims=True)
                    return carry

                return plan.over_outputs(add, carry)

            plan.over_outputs(clear, 0)
            plan.over_lanes(tile, run=run)

        def tile_of_numbers(lane, totals):
            w, row = weights_ref[0:1, lane], row_at(lane)
            if plan.adds_up_in_memory:
                return tuple(map(jnp.add, totals, _sums(plan, row, w)))
            pairs = zip(totals, plan.summary(row)[0], strict=True)
            return tuple(_added(plan, total, number, w) for total, number in pairs)

        if plan.kernel.outputs:
            plan.over_runs(run_of_outputs)
            return
        count, height = plan.summary_shape
        if plan.adds_up_in_memory:
            count = -(-plan.out_width // plan.lanes)
        start = (jnp.zeros((height, plan.lanes), jnp.float32),) * count

        def run_of_numbers(run):
            totals = plan.over_lanes(tile_of_numbers, start, run)
            if plan.adds_up_in_memory:
                rows = min(plan.lanes, plan.out_width)
                for i, total in enumerate(totals):
                    parts = jnp.sum(total.reshape(-1, rows), 0)
                    out_ref[pl.ds(run * plan.out_width + i * rows, rows), :] = parts[:, None]
                return
            for i, total in enumerate(totals):
                sums = jnp.sum(total, 1)
                out_ref[plan.place(i, run)] = sums[:, None] if height > 1 else jnp.sum(sums, 0)

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
    out = out.reshape(plan.planes, -1, plan.out_width)[:, : plan.runs]
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
            summary, _ = plan.summary(row)
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


def _sums(plan: Launch, row: Row, weights: jax.Array) -> Sequence[jax.Array]:
    """Of the weighted outputs of a tile of samples, by `Machine.sums`."""
    numbers, _ = plan.kernel.summary(row)
    if plan.kernel.places:
        places, codes = numbers, map(np.float32, range(len(numbers)))
    else:
        places, codes = range(len(numbers)), numbers
    terms = [weights * plan.op.output(code, weights) for code in codes]
    return machine(plan.platform).sums(places, terms, plan.out_width)


def _added(plan: Launch, total: jax.Array, code: jax.Array, factor: jax.Array) -> jax.Array:
    """total + factor * the output that numbers of a code stand for."""
    return machine(plan.platform).fma(factor, plan.op.output(code, factor), total)
