"""Rankings and sorts on a TPU: whole rows in vector memory, a vector for each coordinate's key.

Operands as in `xla.py`; `which` is inner, platform and stream.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from perturbk.kernels import tpu_counting, tpu_sort
from perturbk.kernels.ops import op_math
from perturbk.kernels.pallas import vmem
from perturbk.kernels.ranking import SORT_KEYS
from perturbk.kernels.sorting import SORTS
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


class _Way:
    """How the rows of one vector are put in order, in scratch.

    Attributes:
        height: entries of the scratch.
        dtypes: of its arrays, each [entries, sublanes, lanes].
    """

    height: int
    dtypes: tuple = (jnp.int32, jnp.float32)

    def put(self, refs, j, key: jax.Array) -> None:
        """Takes the sort key of coordinate j."""
        raise NotImplementedError

    def finish(self, refs, d: int) -> None:
        """Behind the last key."""
        raise NotImplementedError

    def code(self, refs, j: jax.Array) -> jax.Array:
        """What stands for output j."""
        raise NotImplementedError


class _RanksByCounting(_Way):
    def __init__(self, d: int):
        self.height = tpu_counting.height(d)

    def put(self, refs, j, key):
        refs[0][j] = key

    def finish(self, refs, d):
        tpu_counting.rank(*refs, self.height)

    def code(self, refs, j):
        return refs[1][j]


class _RanksBySorting(_Way):
    def __init__(self, d: int):
        self.height = tpu_sort.height(d)

    def put(self, refs, j, key):
        keys_ref, places_ref = refs
        keys_ref[j] = tpu_sort.distinct(key, j)
        places_ref[j] = jnp.broadcast_to(jnp.asarray(j, jnp.float32), VECTOR)

    def finish(self, refs, d):
        tpu_sort.rank(*refs, d)

    def code(self, refs, j):
        return tpu_sort.rank_at(refs[1], j)


class _Values(_Way):
    dtypes = (jnp.int32,)

    def __init__(self, d: int):
        self.height = tpu_sort.height(d)

    def put(self, refs, j, key):
        refs[0][j] = key

    def finish(self, refs, d):
        tpu_sort.ascending(*refs, d)

    def code(self, refs, j):
        return refs[0][j]


class _Call:
    """One call: its rows, and the part that all kernels share.

    Attributes:
        scratch: memory for the way in which rows are put in order, the last of a kernel's refs.
    """

    def __init__(self, keys, x, sigma, t=None, *, op: str, stream: Stream = THREEFRY, **which):
        self.rows = Rows(keys, x, sigma, stream=stream, **which, fill=0, whole=True)
        self.units, self.d = self.rows.units, x.shape[3]
        self.product = Product(self.rows, t)
        self.sort_key = SORTS[op].key if op in SORTS else SORT_KEYS[op]
        self.math = op_math(op)
        if op in SORTS:
            self.way = _Values(self.d)
        else:
            self.way = (_RanksByCounting if counts(self.d) else _RanksBySorting)(self.d)
        shape = (max(self.way.height, self.units.drawn), *VECTOR)
        self.scratch = [vmem(shape, dtype) for dtype in self.way.dtypes]

    def split(self, refs) -> tuple[tuple, tuple]:
        """(other refs of a kernel, those of its scratch)."""
        count = len(self.scratch)
        return refs[:-count], refs[-count:]

    def order(
        self, sample_ref, counters_ref, x_ref, sigma_ref, *, scratch, t_refs=(), dot_refs=()
    ) -> None:
        """Draws the rows of one vector and puts them in order."""
        units = self.units
        bits = self.rows.bits.at(sample_ref, counters_ref)
        perturbed = self.rows.perturbed(x_ref, sigma_ref)

        def draw(q, dots):
            first = q * np.int32(units.step)
            drawn = bits(first)
            for u, y in enumerate(perturbed(q, drawn)):
                self.way.put(scratch, first + np.int32(u), self.sort_key(y))
            return self.product.add(dots, t_refs, q, drawn)

        def pad(i, carry):
            self.way.put(scratch, np.int32(self.d) + i, jnp.full(VECTOR, _LAST))
            return carry

        self.product.clear(dot_refs)
        dots = over_steps(units, draw, [ref[...] for ref in dot_refs])
        for ref, value in zip(dot_refs, dots, strict=True):
            ref[...] = value
        jax.lax.fori_loop(np.int32(0), np.int32(self.way.height - self.d), pad, 0)
        self.way.finish(scratch, self.d)

    def times(self, scratch, j: jax.Array, factor: jax.Array) -> jax.Array:
        """factor * output j of every sample, float32; any of them behind the last."""
        code = self.way.code(scratch, jnp.minimum(j, np.int32(self.d - 1)))
        return factor * self.math.output(code, factor)


def samples(
    keys, x, sigma, t=None, *, op: str, noise: str, **which
) -> tuple[jax.Array, list[jax.Array]]:
    """Codes of every sample: [groups, shared, rows, d, N]; with t, like x, also <h_1(z), t>."""
    call = _Call(keys, x, sigma, t, op=op, noise=noise, **which)
    units, product = call.units, call.product

    def body(*refs):
        refs, scratch = call.split(refs)
        count = len(call.rows.operands)
        inputs, (t_refs, (out_ref,), dot_refs) = refs[:count], product.split(refs[count:], 1)
        call.order(*inputs, scratch=scratch, t_refs=t_refs, dot_refs=dot_refs)

        def copy(j, carry):
            out_ref[j] = call.way.code(scratch, j).astype(jnp.int32)
            return carry

        jax.lax.fori_loop(np.int32(0), np.int32(call.d), copy, 0)

    shape = (units.row_tiles * units.per_row, call.d, *VECTOR)
    codes, *dots = units.launch(
        body,
        [*call.rows.operands, *product.operands],
        [*call.rows.in_specs, *product.in_specs],
        [units.tile_spec(call.d), *product.out_specs],
        [jax.ShapeDtypeStruct(shape, jnp.int32), *product.out_shapes],
        scratch=call.scratch,
        name=f"{op}_samples_{noise}",
    )
    codes = codes.astype(call.math.code_dtype(call.d)).swapaxes(0, 1)
    codes = jax.vmap(units.from_samples)(codes)[:, :, 0]  # [d, planes, N]
    return jnp.moveaxis(codes, 0, 1).reshape(*x.shape, -1), product.of_samples(dots)


def op_sum(keys, x, sigma, weights, *, op: str, noise: str, **which) -> jax.Array:
    """sum_s W_s op(y_s): weights [groups, shared, N] -> [groups, shared, rows, d]."""
    call = _Call(keys, x, sigma, op=op, noise=noise, **which)
    units, entries = call.units, x.shape[0] * x.shape[1]

    def body(*refs):
        (*inputs, weights_ref, sums), scratch = call.split(refs)
        call.order(*inputs, scratch=scratch)

        def add(q, carry):
            for u in range(units.step):
                j = q * np.int32(units.step) + np.int32(u)
                sums.add(j, call.times(scratch, j, weights_ref[0]))
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
    """<op(y_s), g> per sample: g [groups, shared, rows, d] -> [groups, shared, N]."""
    call = _Call(keys, x, sigma, op=op, noise=noise, **which)
    units = call.units

    def body(*refs):
        (*inputs, g_ref, out_ref), scratch = call.split(refs)
        call.order(*inputs, scratch=scratch)

        def add(q, total):
            for u, g in enumerate(columns(units, g_ref, q)):
                total = total + call.times(scratch, q * np.int32(units.step) + np.int32(u), g)
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
