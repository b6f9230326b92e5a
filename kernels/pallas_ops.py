"""Fused kernels of the ops: draw the noise, apply the op, accumulate, store nothing of size N x d.

One program takes one row and a run of samples. Coordinates lie along axis 0 of a tile (sublanes
on a TPU), samples along axis 1 (lanes). Each program owns its outputs and partial sums are added
outside, so results do not depend on the order of execution.

Operands are those of `xla.py`. Inside, a *plane* is one (group, shared vector, row).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.ops import OPS
from perturbk.kernels.pallas import launch, power_of_two
from perturbk.kernels.pallas_rows import OP_KERNELS, Row
from perturbk.kernels.tuning import TUNING


class _Launch:
    """Cuts the operands into blocks; one instance per call."""

    def __init__(self, keys, x, sigma, *, op, noise, inner, platform):
        self.kernel, self.noise, self.inner, self.platform = OP_KERNELS[op], noise, inner, platform
        self.groups, self.shared, self.rows, self.d = x.shape
        self.planes = self.groups * self.shared * self.rows
        self.num_samples = keys.shape[-1]
        self.tile = power_of_two(min(self.d, self.kernel.tile))
        self.width = -(-self.d // self.tile) * self.tile
        self.lanes = TUNING.kernel_lanes
        tiles = -(-self.num_samples // self.lanes)
        self.lane_tiles = -(-tiles // TUNING.kernel_runs)  # per program
        self.runs = -(-tiles // self.lane_tiles)
        self.padded = self.runs * self.lane_tiles * self.lanes
        self.operands = [
            self.per_sample(keys),
            self.column(x, -np.inf),
            self.column(jnp.broadcast_to(sigma, x.shape), 1),
        ]
        self.in_specs = [
            pl.BlockSpec((None, 2, self.run_lanes), lambda p, b: (p // self.of_group, 0, b)),
            self.column_spec,
            self.column_spec,
        ]

    @property
    def of_group(self) -> int:
        return self.shared * self.rows

    @property
    def run_lanes(self) -> int:
        return self.lane_tiles * self.lanes

    @property
    def column_spec(self) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.width, 1), lambda p, b: (p, 0, 0))

    def column(self, a: jax.Array, fill: float) -> jax.Array:
        """[groups, shared, rows, d] -> [planes, width, 1]."""
        a = a.reshape(self.planes, self.d)
        a = jnp.pad(a, ((0, 0), (0, self.width - self.d)), constant_values=fill)
        return a[:, :, None]

    def per_sample(self, a: jax.Array) -> jax.Array:
        """Zero-pads the samples."""
        return jnp.pad(a, ((0, 0), (0, 0), (0, self.padded - self.num_samples)))

    def rows_of(self, keys_ref, x_ref, sigma_ref) -> Callable[[object], Row]:
        """This program's row, as a function of the slice of samples."""
        r = pl.program_id(0) % np.int32(self.rows)
        inner = np.int32(self.inner)
        wrapped = np.uint32(self.d * self.inner % (1 << 32)).astype(np.int32)
        base = (r // inner) * wrapped + r % inner

        def row(lane) -> Row:
            words = keys_ref[0:1, lane], keys_ref[1:2, lane]
            return Row(
                x_ref,
                sigma_ref,
                words,
                base,
                self.d,
                self.inner,
                self.tile,
                self.noise,
                self.platform,
            )

        return row

    def over_lanes(self, body: Callable[[object], None]) -> None:
        """Calls body(lane slice) for each tile of samples of this program."""

        def step(i, carry):
            body(pl.ds(i * self.lanes, self.lanes))
            return carry

        lax.fori_loop(0, self.lane_tiles, step, 0)

    def run(self, body, name: str, extra, extra_spec, out_spec, out_shape) -> jax.Array:
        return launch(
            body,
            [*self.operands, *extra],
            [*self.in_specs, *extra_spec],
            out_spec,
            out_shape,
            grid=(self.planes, self.runs),
            name=name,
            platform=self.platform,
        )


def samples(keys, x, sigma, *, op, noise, inner, platform) -> jax.Array:
    """Codes of every sample: [groups, shared, rows, (d,) N]."""
    plan = _Launch(keys, x, sigma, op=op, noise=noise, inner=inner, platform=platform)
    code_shape = OPS[op].code_shape(plan.d)
    height = plan.width if code_shape else 1

    def body(keys_ref, x_ref, sigma_ref, out_ref):
        row_at = plan.rows_of(keys_ref, x_ref, sigma_ref)

        def tile(lane):
            row = row_at(lane)
            summary = plan.kernel.summary(row)
            if not code_shape:
                out_ref[:, lane] = summary
                return

            def store(t, carry):
                out_ref[pl.ds(t * plan.tile, plan.tile), lane] = plan.kernel.outputs(
                    row, summary, t
                )
                return carry

            lax.fori_loop(0, row.num_tiles, store, 0)

        plan.over_lanes(tile)

    out = plan.run(
        body,
        f"{op}_samples_{noise}",
        [],
        [],
        pl.BlockSpec((None, height, plan.run_lanes), lambda p, b: (p, 0, b)),
        jax.ShapeDtypeStruct((plan.planes, height, plan.padded), jnp.int32),
    )
    out = out[:, : math.prod(code_shape), : plan.num_samples].astype(OPS[op].code_dtype(plan.d))
    return out.reshape(plan.groups, plan.shared, plan.rows, *code_shape, plan.num_samples)


def op_sum(keys, x, sigma, weights, *, op, noise, inner, platform) -> jax.Array:
    """sum_s W_s op(x + sigma z_s): [groups, shared, rows, d], one pass over the noise."""
    plan = _Launch(keys, x, sigma, op=op, noise=noise, inner=inner, platform=platform)

    def body(keys_ref, x_ref, sigma_ref, weights_ref, out_ref):
        row_at = plan.rows_of(keys_ref, x_ref, sigma_ref)

        def clear(t, carry):
            out_ref[pl.ds(t * plan.tile, plan.tile), :] = jnp.zeros((plan.tile, 1), jnp.float32)
            return carry

        lax.fori_loop(0, plan.width // plan.tile, clear, 0)

        def tile(lane):
            row = row_at(lane)
            summary, w = plan.kernel.summary(row), weights_ref[0:1, lane]

            def add(t, carry):
                f = plan.kernel.outputs(row, summary, t).astype(jnp.float32)
                at = pl.ds(t * plan.tile, plan.tile)
                out_ref[at, :] = out_ref[at, :] + jnp.sum(w * f, 1, keepdims=True)
                return carry

            lax.fori_loop(0, row.num_tiles, add, 0)

        plan.over_lanes(tile)

    weights = plan.per_sample(weights).reshape(plan.groups * plan.shared, 1, -1)
    out = plan.run(
        body,
        f"{op}_sum_{noise}",
        [weights],
        [pl.BlockSpec((None, 1, plan.run_lanes), lambda p, b: (p // plan.rows, 0, b))],
        pl.BlockSpec((None, None, plan.width, 1), lambda p, b: (p, b, 0, 0)),
        jax.ShapeDtypeStruct((plan.planes, plan.runs, plan.width, 1), jnp.float32),
    )
    return jnp.sum(out, (1, 3))[:, : plan.d].reshape(x.shape)


def op_dot(keys, x, sigma, cotangent, *, op, noise, inner, platform) -> jax.Array:
    """<op(x + sigma z_s), g> per sample: [groups, shared, N], one pass over the noise."""
    plan = _Launch(keys, x, sigma, op=op, noise=noise, inner=inner, platform=platform)

    def body(keys_ref, x_ref, sigma_ref, g_ref, out_ref):
        row_at = plan.rows_of(keys_ref, x_ref, sigma_ref)

        def tile(lane):
            row = row_at(lane)
            summary = plan.kernel.summary(row)

            def add(t, total):
                g = g_ref[pl.ds(t * plan.tile, plan.tile), :]
                return total + g * plan.kernel.outputs(row, summary, t).astype(jnp.float32)

            zero = jnp.zeros((plan.tile, plan.lanes), jnp.float32)
            total = lax.fori_loop(0, row.num_tiles, add, zero)
            out_ref[:, lane] = jnp.sum(total, 0, keepdims=True)

        plan.over_lanes(tile)

    out = plan.run(
        body,
        f"{op}_dot_{noise}",
        [plan.column(cotangent, 0)],
        [plan.column_spec],
        pl.BlockSpec((None, 1, plan.run_lanes), lambda p, b: (p, 0, b)),
        jax.ShapeDtypeStruct((plan.planes, 1, plan.padded), jnp.float32),
    )
    out = out[..., : plan.num_samples].reshape(plan.groups, plan.shared, plan.rows, -1)
    return jnp.sum(out, 2)
