"""Rankings on a TPU: the sort keys of whole rows in vector memory, a vector for each coordinate.

Operands as in `xla.py`; `which` is inner, platform and stream.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from perturbk.kernels import tpu_counting, tpu_sort
from perturbk.kernels.pallas import vmem
from perturbk.kernels.ranking import SORT_KEYS, code_dtype
from perturbk.kernels.streams import THREEFRY, Stream
from perturbk.kernels.tpu_cut import VECTOR
from perturbk.kernels.tpu_product import Product
from perturbk.kernels.tpu_rows import Rows
from perturbk.kernels.tpu_steps import columns, over_steps
from perturbk.kernels.tpu_sums import launch_sums
from perturbk.kernels.tuning import TUNING

_LAST = np.int32(0x7FFFFFFF)  # the key of the padding


def counts(d: int) -> bool:
    """Whether comparing all pairs of d values takes fewer cycles than sorting them."""
    levels = max(4, (d - 1).bit_length())  # no network has fewer
    return TUNING.tpu_counting_cost * d * d <= levels**2 << levels


class _Ranking:
    """One call: its rows, and the part that all kernels of rankings share."""

    def __init__(self, keys, x, sigma, t=None, *, op: str, stream: Stream = THREEFRY, **which):
        self.rows = Rows(keys, x, sigma, stream=stream, **which, fill=0, whole=True)
        self.units, self.d = self.rows.units, x.shape[3]
        self.product = Product(self.rows, t)
        self.sort_key = SORT_KEYS[op]
        self.counting = counts(self.d)
        self.height = (tpu_counting if self.counting else tpu_sort).height(self.d)
        shape = (max(self.height, self.units.drawn), *VECTOR)
        self.scratch = [vmem(shape, jnp.int32), vmem(shape, jnp.float32)]

    def rank(
        self,
        sample_ref,
        counters_ref,
        x_ref,
        sigma_ref,
        keys_ref,
        ranks_ref,
        t_refs=(),
        dot_refs=(),
    ) -> None:
        """Draws the rows of one vector and ranks them."""
        units = self.units
        bits = self.rows.bits.at(sample_ref, counters_ref)
        perturbed = self.rows.perturbed(x_ref, sigma_ref)

        def put(j, key: jax.Array) -> None:
            keys_ref[j] = key if self.counting else tpu_sort.distinct(key, j)
            if not self.counting:
                ranks_ref[j] = jnp.broadcast_to(jnp.asarray(j, jnp.float32), VECTOR)

        def draw(q, dots):
            first = q * np.int32(units.step)
            drawn = bits(first)
            for u, y in enumerate(perturbed(q, drawn)):
                put(first + np.int32(u), self.sort_key(y))
            return self.product.add(dots, t_refs, q, drawn)

        def pad(i, carry):
            put(np.int32(self.d) + i, jnp.full(VECTOR, _LAST))
            return carry

        self.product.clear(dot_refs)
        dots = over_steps(units, draw, [ref[...] for ref in dot_refs])
        for ref, value in zip(dot_refs, dots, strict=True):
            ref[...] = value
        jax.lax.fori_loop(np.int32(0), np.int32(self.height - self.d), pad, 0)
        if self.counting:
            tpu_counting.rank(keys_ref, ranks_ref, self.height)
        else:
            tpu_sort.rank(keys_ref, ranks_ref, self.d)

    def rank_at(self, ranks_ref, j: jax.Array) -> jax.Array:
        """Ranks of coordinate j, float32; any number behind the last coordinate."""
        j = jnp.minimum(j, np.int32(self.d - 1))
        return ranks_ref[j] if self.counting else tpu_sort.rank_at(ranks_ref, j)


def samples(
    keys, x, sigma, t=None, *, op: str, noise: str, **which
) -> tuple[jax.Array, list[jax.Array]]:
    """Ranks of every sample: [groups, shared, rows, d, N]; with t, like x, also <h_1(z), t>."""
    call = _Ranking(keys, x, sigma, t, op=op, noise=noise, **which)
    units, product = call.units, call.product

    def body(*refs):
        *refs, keys_ref, ranks_ref = refs
        count = len(call.rows.operands)
        inputs, (t_refs, (out_ref,), dot_refs) = refs[:count], product.split(refs[count:], 1)
        call.rank(*inputs, keys_ref, ranks_ref, t_refs, dot_refs)

        def copy(j, carry):
            out_ref[j] = call.rank_at(ranks_ref, j).astype(jnp.int32)
            return carry

        jax.lax.fori_loop(np.int32(0), np.int32(call.d), copy, 0)

    shape = (units.row_tiles * units.per_row, call.d, *VECTOR)
    ranks, *dots = units.launch(
        body,
        [*call.rows.operands, *product.operands],
        [*call.rows.in_specs, *product.in_specs],
        [units.tile_spec(call.d), *product.out_specs],
        [jax.ShapeDtypeStruct(shape, jnp.int32), *product.out_shapes],
        scratch=call.scratch,
        name=f"{op}_samples_{noise}",
    )
    ranks = jax.vmap(units.from_samples)(ranks.astype(code_dtype(call.d)).swapaxes(0, 1))
    ranks = jnp.moveaxis(ranks[:, :, 0], 0, 1).reshape(*x.shape, -1)  # from [d, planes, 1, N]
    return ranks, product.of_samples(dots)


def op_sum(keys, x, sigma, weights, *, op: str, noise: str, **which) -> jax.Array:
    """sum_s W_s rank_s: weights [groups, shared, N] -> [groups, shared, rows, d]."""
    call = _Ranking(keys, x, sigma, op=op, noise=noise, **which)
    units, entries = call.units, x.shape[0] * x.shape[1]

    def body(*refs):
        *inputs, weights_ref, sums, keys_ref, ranks_ref = refs
        call.rank(*inputs, keys_ref, ranks_ref)

        def add(q, carry):
            for u in range(units.step):
                j = q * np.int32(units.step) + np.int32(u)
                sums.add(j, weights_ref[0] * call.rank_at(ranks_ref, j))
            return carry

        over_steps(units, add, 0)

    out = launch_sums(
        units,
        body,
        [*call.rows.operands, units.by_sample(weights.reshape(entries, 1, -1))],
        [*call.rows.in_specs, units.sample_spec(1, entries)],
        scratch=call.scratch,
        name=f"{op}_sum_{noise}",
    )
    return units.from_coordinates(out).reshape(x.shape)


def op_dot(keys, x, sigma, cotangent, *, op: str, noise: str, **which) -> jax.Array:
    """<rank_s, g> per sample: g [groups, shared, rows, d] -> [groups, shared, N]."""
    call = _Ranking(keys, x, sigma, op=op, noise=noise, **which)
    units = call.units

    def body(*refs):
        *inputs, g_ref, out_ref, keys_ref, ranks_ref = refs
        call.rank(*inputs, keys_ref, ranks_ref)

        def add(q, total):
            for u, g in enumerate(columns(units, g_ref, q)):
                total = total + g * call.rank_at(ranks_ref, q * np.int32(units.step) + np.int32(u))
            return total

        out_ref[...] = over_steps(units, add, jnp.zeros(VECTOR, jnp.float32))

    out = units.launch(
        body,
        [*call.rows.operands, units.by_coordinate(cotangent.reshape(-1, call.d), 0)],
        [*call.rows.in_specs, units.coordinate_spec],
        units.tile_spec(),
        units.tile_shape(jnp.float32),
        scratch=call.scratch,
        name=f"{op}_dot_{noise}",
    )
    out = units.from_samples(out).reshape(*x.shape[:3], -1)
    return jnp.sum(out, 2)
