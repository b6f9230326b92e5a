"""The k largest on a TPU: every lane's winners so far, by insertion, each vector 1024 samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from perturbk.kernels.ranking import code_dtype
from perturbk.kernels.streams import THREEFRY, Stream
from perturbk.kernels.topk import LAST, largest, total_order
from perturbk.kernels.tpu_cut import VECTOR
from perturbk.kernels.tpu_product import Product
from perturbk.kernels.tpu_rows import Rows
from perturbk.kernels.tpu_steps import over_steps


def _insert(kept: list, key: jax.Array, index: jax.Array) -> list:
    """`kept` are pairs (key, index) in descending order; the last makes room."""
    wins = [key > other for other, _ in kept]  # strict: the lower index wins ties
    out = []
    for i, here in enumerate(kept):
        new = (key, index)
        if i:  # else the one above moves down, if it made way
            new = tuple(jnp.where(wins[i - 1], a, b) for a, b in zip(kept[i - 1], new, strict=True))
        out.append(tuple(jnp.where(wins[i], a, b) for a, b in zip(new, here, strict=True)))
    return out


def winners(
    keys,
    x,
    sigma,
    t=None,
    *,
    k: int,
    noise: str,
    inner: int,
    platform: str,
    stream: Stream = THREEFRY,
) -> tuple[jax.Array, list[jax.Array]]:
    """Indices of the k largest of each sample's row: unsigned [groups, shared, rows, k, N].

    They descend, and ties go to the lower index. Operands as in `xla.py`. With t, like x, also
    <h_1(z), t> [groups, shared, N].
    """
    which = dict(noise=noise, inner=inner, platform=platform, stream=stream)
    rows = Rows(keys, x, sigma, **which, fill=0)
    units, product = rows.units, Product(rows, t)

    def body(keys_ref, counters_ref, x_ref, sigma_ref, end_ref, *refs):
        t_refs, (key_ref, arg_ref), dot_refs = product.split(refs, 2)
        bits, perturbed = rows.bits.at(keys_ref, counters_ref), rows.perturbed(x_ref, sigma_ref)
        start = pl.program_id(2) * np.int32(units.piece)
        end = jnp.broadcast_to(end_ref[...], VECTOR)

        @pl.when(pl.program_id(2) == 0)
        def _():
            key_ref[...] = jnp.full((k, *VECTOR), LAST)
            arg_ref[...] = jnp.zeros((k, *VECTOR), jnp.int32)
            product.clear(dot_refs)

        def race(q, carry):
            kept, dots = carry
            first = start + q * np.int32(units.step)
            drawn = bits(first)
            dots = product.add(dots, t_refs, q, drawn)
            for u, y in enumerate(perturbed(q, drawn)):
                j = first + np.int32(u)
                key = total_order(y)
                if units.padded:
                    key = jnp.where(j < end, key, LAST)
                kept = _insert(kept, key, j)
            return kept, dots

        kept = [(key_ref[i], arg_ref[i]) for i in range(k)]
        kept, dots = over_steps(units, race, (kept, [ref[...] for ref in dot_refs]))
        for ref, value in zip(dot_refs, dots, strict=True):
            ref[...] = value
        for i, (key, arg) in enumerate(kept):
            key_ref[i], arg_ref[i] = key, arg

    shape = (units.row_tiles * units.per_row, k, *VECTOR)
    key, arg, *dots = units.launch(
        body,
        [*rows.operands, units.ends(), *product.operands],
        [*rows.in_specs, units.unit_spec, *product.in_specs],
        [*[units.tile_spec(k)] * 2, *product.out_specs],
        [*[jax.ShapeDtypeStruct(shape, jnp.int32)] * 2, *product.out_shapes],
        name=f"top_k_{k}_samples_{noise}",
    )
    key, arg = _by_plane(units, key), _by_plane(units, arg)
    if units.segments > 1:
        first = np.arange(units.segments, dtype=np.int32) * np.int32(units.segment)
        arg = arg + np.repeat(first, k).reshape(1, -1, 1)
        arg = jnp.take_along_axis(arg, largest(key, k, key.shape[1]), 1)
    codes = arg.reshape(*x.shape[:3], k, -1).astype(code_dtype(x.shape[3]))
    return codes, product.of_samples(dots)


def _by_plane(units, a: jax.Array) -> jax.Array:
    """[tiles, k, sublanes, lanes] -> [planes, segments * k, N]."""
    a = jnp.moveaxis(jax.vmap(units.from_samples, 1)(a), 0, 2)
    return a.reshape(units.planes, -1, units.num_samples)
