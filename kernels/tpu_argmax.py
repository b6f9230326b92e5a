"""Winners on a TPU: a running maximum over the coordinates, each vector 1024 samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.argmax import first_max, without_nan
from perturbk.kernels.ranking import code_dtype
from perturbk.kernels.streams import THREEFRY, Stream
from perturbk.kernels.tpu_cut import VECTOR
from perturbk.kernels.tpu_product import Product
from perturbk.kernels.tpu_rows import Rows
from perturbk.kernels.tpu_steps import over_steps


def winners(
    keys, x, sigma, t=None, *, noise: str, inner: int, platform: str, stream: Stream = THREEFRY
) -> tuple[jax.Array, list[jax.Array]]:
    """Index of the first maximum of each sample's row: unsigned [groups, shared, rows, N].

    Operands as in `xla.py`. With t, like x, also <h_1(z), t> [groups, shared, N].
    """
    which = dict(noise=noise, inner=inner, platform=platform, stream=stream)
    rows = Rows(keys, *without_nan(x, sigma), **which, fill=-np.inf)
    units, product = rows.units, Product(rows, t)

    def body(keys_ref, counters_ref, x_ref, sigma_ref, *refs):
        t_refs, (best_ref, arg_ref), dot_refs = product.split(refs, 2)
        bits, perturbed = rows.bits.at(keys_ref, counters_ref), rows.perturbed(x_ref, sigma_ref)
        start = pl.program_id(2) * np.int32(units.piece)

        @pl.when(pl.program_id(2) == 0)
        def _():
            best_ref[...] = jnp.full(VECTOR, -np.inf, jnp.float32)
            arg_ref[...] = jnp.zeros(VECTOR, jnp.int32)
            product.clear(dot_refs)

        def race(q, carry):
            best, arg, dots = carry
            first = start + q * np.int32(units.step)
            drawn = bits(first)
            dots = product.add(dots, t_refs, q, drawn)
            for u, y in enumerate(perturbed(q, drawn)):
                better = y > best  # strict: the first index wins ties
                best = jnp.where(better, y, best)
                arg = jnp.where(better, first + np.int32(u), arg)
            return best, arg, dots

        results = best_ref, arg_ref, *dot_refs
        best, arg, *dots = (ref[...] for ref in results)
        best, arg, dots = over_steps(units, race, (best, arg, dots))
        for ref, value in zip(results, (best, arg, *dots), strict=True):
            ref[...] = value

    best, arg, *dots = units.launch(
        body,
        [*rows.operands, *product.operands],
        [*rows.in_specs, *product.in_specs],
        [units.tile_spec(), units.tile_spec(), *product.out_specs],
        [units.tile_shape(jnp.float32), units.tile_shape(jnp.int32), *product.out_shapes],
        name=f"argmax_samples_{noise}",
    )
    arg = units.from_samples(arg)
    if units.segments > 1:
        first = lax.broadcasted_iota(jnp.int32, arg.shape, 1) * np.int32(units.segment)
        segment = first_max(units.from_samples(best), 1)
        arg = jnp.take_along_axis(arg + first, segment[:, None], 1)
    codes = arg.reshape(*x.shape[:3], -1).astype(code_dtype(x.shape[3]))
    return codes, product.of_samples(dots)
