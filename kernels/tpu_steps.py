"""Inside a TPU kernel: the coordinates of a piece, a step of them at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.pallas import roll
from perturbk.kernels.tpu_cut import LANES, VECTOR, Cut


def columns(cut: Cut, ref, q: jax.Array) -> list[jax.Array]:
    """The coordinates of step q of a block, each spread over the lanes."""
    tiles = ref.shape[1] // LANES
    first = q * np.int32(cut.step)
    shift = lax.rem(first, np.int32(LANES))
    if tiles == 1:
        tile = jnp.broadcast_to(ref[...], VECTOR)
    else:  # a step may reach into the next tile of lanes
        at = lax.div(first, np.int32(LANES))
        this, following = (
            ref[:, pl.ds(pl.multiple_of(i * np.int32(LANES), LANES), LANES)]
            for i in (at, jnp.minimum(at + np.int32(1), np.int32(tiles - 1)))
        )
        lane = lax.broadcasted_iota(jnp.int32, VECTOR, 1)
        this, following = (jnp.broadcast_to(a, VECTOR) for a in (this, following))
        tile = jnp.where(lane < shift, following, this)
    tile = roll(tile, lax.rem(np.int32(LANES) - shift, np.int32(LANES)), 1)
    return [jnp.broadcast_to(tile[:, u : u + 1], VECTOR) for u in range(cut.step)]


def over_steps(cut: Cut, turn: Callable, carry):
    """carry = turn(q, carry) for each step q of a piece."""
    return lax.fori_loop(np.int32(0), np.int32(cut.steps), turn, carry)
