"""Score products in fused kernels: `S t` and `S^T w` for any `fun`, with S never stored.

Operands as in `xla_score.py`; layout as in `pallas_ops.py`, elements along axis 0 of a tile and
samples along axis 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.noise import NOISES
from perturbk.kernels.pallas import launch, opaque, power_of_two
from perturbk.kernels.threefry import element_bits
from perturbk.kernels.tuning import TUNING


def _moment_tile(keys_ref, lane, first, tile, platform, *, noise, order, power) -> jax.Array:
    """h_m(z) z^n of `tile` elements from `first` on, for one tile of samples."""
    k0, k1 = keys_ref[0:1, lane], keys_ref[1:2, lane]
    element = (lax.broadcasted_iota(jnp.int32, (tile, k0.shape[1]), 0) + first).astype(jnp.uint32)
    bits = element_bits(k0, k1, opaque(element, platform))
    return NOISES[noise].moment(bits, order, power)


def score_dot(keys, v, *, platform: str, **which) -> jax.Array:
    """S t: keys uint32 [groups, 2, N], v [groups, shared, E] -> [groups, shared, N]."""
    groups, shared, size = v.shape
    num_samples, lanes = keys.shape[-1], TUNING.kernel_lanes
    tile = power_of_two(min(size, TUNING.kernel_tile))
    tiles, blocks = -(-size // tile), -(-num_samples // lanes)

    def body(keys_ref, v_ref, out_ref):
        def add(t, total):
            first = t * np.int32(tile)
            moment = _moment_tile(keys_ref, slice(None), first, tile, platform, **which)
            return total + v_ref[pl.ds(t * tile, tile), :] * moment

        total = lax.fori_loop(0, tiles, add, jnp.zeros((tile, lanes), jnp.float32))
        out_ref[...] = jnp.sum(total, 0, keepdims=True)

    v = jnp.pad(v.reshape(-1, size), ((0, 0), (0, tiles * tile - size)))[:, :, None]
    keys = jnp.pad(keys, ((0, 0), (0, 0), (0, blocks * lanes - num_samples)))
    out = launch(
        body,
        [keys, v],
        [
            pl.BlockSpec((None, 2, lanes), lambda p, b: (p // shared, 0, b)),
            pl.BlockSpec((None, tiles * tile, 1), lambda p, b: (p, 0, 0)),
        ],
        pl.BlockSpec((None, 1, lanes), lambda p, b: (p, 0, b)),
        jax.ShapeDtypeStruct((groups * shared, 1, blocks * lanes), jnp.float32),
        grid=(groups * shared, blocks),
        name="score_dot_{noise}_{order}_{power}".format(**which),
        platform=platform,
    )
    return out[..., :num_samples].reshape(groups, shared, num_samples)


def score_sum(keys, w, *, size: int, platform: str, **which) -> jax.Array:
    """S^T w: keys uint32 [groups, 2, N], w [groups, shared, N] -> [groups, shared, size]."""
    groups, shared, num_samples = w.shape
    lanes = TUNING.kernel_lanes
    tile = power_of_two(min(size, TUNING.kernel_tile))
    tiles, lane_tiles = -(-size // tile), -(-num_samples // lanes)
    run_tiles = -(-lane_tiles // TUNING.kernel_runs)
    runs = -(-lane_tiles // run_tiles)
    run = run_tiles * lanes

    def body(keys_ref, w_ref, out_ref):
        first = pl.program_id(1) * np.int32(tile)

        def add(i, total):
            lane = pl.ds(i * lanes, lanes)
            moment = _moment_tile(keys_ref, lane, first, tile, platform, **which)
            return total + w_ref[0:1, lane] * moment

        total = lax.fori_loop(0, run_tiles, add, jnp.zeros((tile, lanes), jnp.float32))
        out_ref[...] = jnp.sum(total, 1, keepdims=True)

    pad = ((0, 0), (0, 0), (0, runs * run - num_samples))
    out = launch(
        body,
        [jnp.pad(keys, pad), jnp.pad(w, pad).reshape(groups * shared, 1, -1)],
        [
            pl.BlockSpec((None, 2, run), lambda p, t, b: (p // shared, 0, b)),
            pl.BlockSpec((None, 1, run), lambda p, t, b: (p, 0, b)),
        ],
        pl.BlockSpec((None, None, tile, 1), lambda p, t, b: (p, b, t, 0)),
        jax.ShapeDtypeStruct((groups * shared, runs, tiles * tile, 1), jnp.float32),
        grid=(groups * shared, tiles, runs),
        name="score_sum_{noise}_{order}_{power}".format(**which),
        platform=platform,
    )
    return jnp.sum(out, (1, 3))[:, :size].reshape(groups, shared, size)
