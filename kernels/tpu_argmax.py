"""Winners on a TPU: a running maximum over the coordinates, each vector 1024 samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.argmax import first_max
from perturbk.kernels.tpu_rows import Rows
from perturbk.kernels.tpu_units import VECTOR

_LARGEST = np.float32(np.finfo(np.float32).max)


def prepared(x: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and sigma with which a plain `>` finds the winner that `first_max` finds.

    The noise is finite, so a row with a NaN in x or sigma has its winner there, in every sample:
    the first of them gets +inf and the rest of the row -inf. An infinite sigma becomes finite.
    """
    nan = (x != x) | (sigma != sigma)
    index = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    first = jnp.min(jnp.where(nan, index, np.int32(x.shape[-1])), -1, keepdims=True)
    certain = jnp.where(index == first, np.float32(np.inf), np.float32(-np.inf))
    x = jnp.where(jnp.any(nan, -1, keepdims=True), certain, x)
    return x, jnp.clip(jnp.where(sigma != sigma, np.float32(1), sigma), -_LARGEST, _LARGEST)


def winners(keys, x, sigma, *, noise: str, inner: int, platform: str) -> jax.Array:
    """Index of the first maximum of each sample's row: int32 [groups, shared, rows, N].

    Operands as in `xla.py`.
    """
    rows = Rows(
        keys, *prepared(x, sigma), noise=noise, inner=inner, platform=platform, fill=-np.inf
    )
    units = rows.units

    def body(keys_ref, base_ref, x_ref, sigma_ref, best_ref, arg_ref):
        bits, perturbed = units.bits(keys_ref, base_ref), rows.perturbed(x_ref, sigma_ref)
        start = pl.program_id(2) * np.int32(units.piece)

        @pl.when(pl.program_id(2) == 0)
        def _():
            best_ref[...] = jnp.full(VECTOR, -np.inf, jnp.float32)
            arg_ref[...] = jnp.zeros(VECTOR, jnp.int32)

        def race(q, carry):
            best, arg = carry
            first = start + q * np.int32(units.step)
            for u, y in enumerate(perturbed(q, bits(first))):
                better = y > best  # strict: the first index wins ties
                best = jnp.where(better, y, best)
                arg = jnp.where(better, first + np.int32(u), arg)
            return best, arg

        best_ref[...], arg_ref[...] = units.over_steps(race, (best_ref[...], arg_ref[...]))

    best, arg = units.launch(
        body,
        rows.operands,
        rows.in_specs,
        [units.tile_spec(), units.tile_spec()],
        [units.tile_shape(jnp.float32), units.tile_shape(jnp.int32)],
        name=f"argmax_samples_{noise}",
    )
    arg = units.from_samples(arg)
    if units.segments > 1:
        first = lax.broadcasted_iota(jnp.int32, arg.shape, 1) * np.int32(units.segment)
        segment = first_max(units.from_samples(best), 1)
        arg = jnp.take_along_axis(arg + first, segment[:, None], 1)
    return arg.reshape(*x.shape[:3], -1)
