"""Score products on a TPU: `S t` and `S^T w` for any `fun`, with S never stored.

Operands as in `xla_score.py`, layout as in `tpu_units.py`: the elements of a leaf are the
coordinates of one row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from perturbk.kernels.noise import NOISES
from perturbk.kernels.tpu_sums import launch_sums
from perturbk.kernels.tpu_units import VECTOR, Units


def score_dot(keys, v, *, noise: str, order: int, power: int, platform: str) -> jax.Array:
    """S t: keys uint32 [groups, 2, N], v [groups, shared, E] -> [groups, shared, N]."""
    groups, shared, size = v.shape
    units = Units(groups * shared, size, keys.shape[-1], platform=platform)

    def body(keys_ref, base_ref, v_ref, out_ref):
        bits = units.bits(keys_ref, base_ref)
        start = pl.program_id(2) * np.int32(units.piece)

        @pl.when(pl.program_id(2) == 0)
        def _():
            out_ref[...] = jnp.zeros(VECTOR, jnp.float32)

        def add(q, total):
            drawn = bits(start + q * np.int32(units.step))
            for a, b in zip(units.columns(v_ref, q), drawn, strict=True):
                total = total + a * NOISES[noise].moment(b, order, power)
            return total

        out_ref[...] = units.over_steps(add, out_ref[...])

    out = units.launch(
        body,
        [
            units.by_sample(keys),
            units.base(1),
            units.by_coordinate(v.reshape(groups * shared, size), 0),
        ],
        [units.sample_spec(2, groups), units.unit_spec, units.coordinate_spec],
        units.tile_spec(),
        units.tile_shape(jnp.float32),
        name=f"score_dot_{noise}_{order}_{power}",
    )
    return jnp.sum(units.from_samples(out), 1).reshape(groups, shared, -1)


def score_sum(keys, w, *, size: int, noise: str, order: int, power: int, platform: str):
    """S^T w: keys uint32 [groups, 2, N], w [groups, shared, N] -> [groups, shared, size]."""
    groups, shared, num_samples = w.shape
    units = Units(groups * shared, size, num_samples, platform=platform)

    def body(keys_ref, base_ref, w_ref, sums):
        bits = units.bits(keys_ref, base_ref)
        start = pl.program_id(1) * np.int32(units.piece)

        def add(q, carry):
            first = q * np.int32(units.step)
            for u, b in enumerate(bits(start + first)):
                sums.add(first + np.int32(u), w_ref[0] * NOISES[noise].moment(b, order, power))
            return carry

        units.over_steps(add, 0)

    out = launch_sums(
        units,
        body,
        [
            units.by_sample(keys),
            units.base(1),
            units.by_sample(w.reshape(groups * shared, 1, num_samples)),
        ],
        [units.sample_spec(2, groups), units.unit_spec, units.sample_spec(1, groups * shared)],
        name=f"score_sum_{noise}_{order}_{power}",
    )
    return units.from_coordinates(out).reshape(groups, shared, size)
