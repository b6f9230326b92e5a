"""Rankings on a TPU: the sort keys of whole rows in vector memory, a vector for each coordinate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from perturbk.kernels import tpu_counting
from perturbk.kernels.pallas import vmem
from perturbk.kernels.ranking import SORT_KEYS, code_dtype
from perturbk.kernels.tpu_rows import Rows
from perturbk.kernels.tpu_sums import launch_sums
from perturbk.kernels.tpu_units import VECTOR

_LAST = np.int32(0x7FFFFFFF)  # the key of the padding


class _Ranking:
    """One call: its rows, and the part that all kernels of rankings share."""

    def __init__(self, keys, x, sigma, *, op: str, noise: str, inner: int, platform: str):
        self.rows = Rows(
            keys, x, sigma, noise=noise, inner=inner, platform=platform, fill=0, whole=True
        )
        self.units, self.d = self.rows.units, x.shape[3]
        self.sort_key = SORT_KEYS[op]
        self.height = tpu_counting.height(self.d)
        self.keys = vmem((max(self.height, self.units.drawn), *VECTOR), jnp.int32)
        self.ranks = vmem((self.height, *VECTOR), jnp.int32)

    def rank(self, sample_ref, base_ref, x_ref, sigma_ref, keys_ref, ranks_ref) -> None:
        """Draws the rows of one vector and ranks them."""
        units = self.units
        bits = units.bits(sample_ref, base_ref)
        perturbed = self.rows.perturbed(x_ref, sigma_ref)

        def draw(q, carry):
            first = q * np.int32(units.step)
            for u, y in enumerate(perturbed(q, bits(first))):
                keys_ref[first + np.int32(u)] = self.sort_key(y)
            return carry

        units.over_steps(draw, 0)
        for j in range(self.d, self.height):
            keys_ref[j] = jnp.full(VECTOR, _LAST)
        tpu_counting.rank(keys_ref, ranks_ref)

    def rank_at(self, ranks_ref, j: jax.Array) -> jax.Array:
        """Ranks of coordinate j, float32; any number behind the last coordinate."""
        return ranks_ref[jnp.minimum(j, np.int32(self.d - 1))].astype(jnp.float32)


def samples(keys, x, sigma, *, op: str, noise: str, inner: int, platform: str) -> jax.Array:
    """Ranks of every sample: [groups, shared, rows, d, N]."""
    call = _Ranking(keys, x, sigma, op=op, noise=noise, inner=inner, platform=platform)
    units = call.units

    def body(*refs):
        *inputs, ranks_ref, keys_ref = refs
        call.rank(*inputs, keys_ref, ranks_ref)

    shape = (call.height, *VECTOR)
    ranks = units.launch(
        body,
        call.rows.operands,
        call.rows.in_specs,
        units.tile_spec(call.height),
        jax.ShapeDtypeStruct((units.row_tiles * units.per_row, *shape), jnp.int32),
        scratch=[call.keys],
        name=f"{op}_samples_{noise}",
    )
    ranks = ranks[:, : call.d].astype(code_dtype(call.d)).swapaxes(0, 1)
    ranks = jax.vmap(units.from_samples)(ranks)  # [d, planes, 1, N]
    return jnp.moveaxis(ranks[:, :, 0], 0, 1).reshape(*x.shape, -1)


def op_sum(keys, x, sigma, weights, *, op: str, noise: str, inner: int, platform: str):
    """sum_s W_s rank_s: weights [groups, shared, N] -> [groups, shared, rows, d]."""
    call = _Ranking(keys, x, sigma, op=op, noise=noise, inner=inner, platform=platform)
    units, entries = call.units, x.shape[0] * x.shape[1]

    def body(*refs):
        *inputs, weights_ref, sums, keys_ref, ranks_ref = refs
        call.rank(*inputs, keys_ref, ranks_ref)

        def add(q, carry):
            for u in range(units.step):
                j = q * np.int32(units.step) + np.int32(u)
                sums.add(j, weights_ref[0] * call.rank_at(ranks_ref, j))
            return carry

        units.over_steps(add, 0)

    out = launch_sums(
        units,
        body,
        [*call.rows.operands, units.by_sample(weights.reshape(entries, 1, -1))],
        [*call.rows.in_specs, units.sample_spec(1, entries)],
        scratch=[call.keys, call.ranks],
        name=f"{op}_sum_{noise}",
    )
    return units.from_coordinates(out).reshape(x.shape)


def op_dot(keys, x, sigma, cotangent, *, op: str, noise: str, inner: int, platform: str):
    """<rank_s, g> per sample: g [groups, shared, rows, d] -> [groups, shared, N]."""
    call = _Ranking(keys, x, sigma, op=op, noise=noise, inner=inner, platform=platform)
    units = call.units

    def body(*refs):
        *inputs, g_ref, out_ref, keys_ref, ranks_ref = refs
        call.rank(*inputs, keys_ref, ranks_ref)

        def add(q, total):
            for u, g in enumerate(units.columns(g_ref, q)):
                total = total + g * call.rank_at(ranks_ref, q * np.int32(units.step) + np.int32(u))
            return total

        out_ref[...] = units.over_steps(add, jnp.zeros(VECTOR, jnp.float32))

    out = units.launch(
        body,
        [*call.rows.operands, units.by_coordinate(cotangent.reshape(-1, call.d), 0)],
        [*call.rows.in_specs, units.coordinate_spec],
        units.tile_spec(),
        units.tile_shape(jnp.float32),
        scratch=[call.keys, call.ranks],
        name=f"{op}_dot_{noise}",
    )
    out = units.from_samples(out).reshape(*x.shape[:3], -1)
    return jnp.sum(out, 2)
