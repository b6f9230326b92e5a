"""Perturbed rows on a TPU: the operands x, sigma and keys, cut into units, and y = x + sigma z."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from perturbk.kernels.noise import NOISES
from perturbk.kernels.tpu_units import VECTOR, Units


class Rows:
    """Operands of `xla.py` for the kernels of the ops; a plane is (group, shared vector, row)."""

    def __init__(self, keys, x, sigma, *, noise: str, inner: int, fill: float, whole: bool = False):
        self.groups, self.shared, self.rows, self.d = x.shape
        self.noise = noise
        planes = self.groups * self.shared * self.rows
        self.units = units = Units(planes, self.d, keys.shape[-1], inner, whole)
        sigma = jnp.broadcast_to(sigma, (*x.shape[:3], sigma.shape[3]))
        # One sigma for a whole row is a vector; otherwise it is spread like x.
        self.uniform = sigma.shape[3] == 1
        if self.uniform:
            sigma, sigma_spec = units.by_plane(sigma.reshape(-1)), units.unit_spec
        else:
            sigma = units.by_coordinate(sigma.reshape(planes, self.d), 1)
            sigma_spec = units.coordinate_spec
        self.operands: Sequence[jax.Array] = [
            units.by_sample(keys),
            units.base(self.rows),
            units.by_coordinate(x.reshape(planes, self.d), fill),
            sigma,
        ]
        self.in_specs: Sequence[pl.BlockSpec] = [
            units.sample_spec(2, self.groups),
            units.unit_spec,
            units.coordinate_spec,
            sigma_spec,
        ]

    def perturbed(self, x_ref, sigma_ref) -> Callable[..., list[jax.Array]]:
        """(step, bits of its coordinates) -> y of its coordinates, a vector of units for each."""
        variate, units = NOISES[self.noise].variate, self.units

        def at(q, bits: list[jax.Array]) -> list[jax.Array]:
            if self.uniform:
                sigma = [jnp.broadcast_to(sigma_ref[...], VECTOR)] * len(bits)
            else:
                sigma = units.columns(sigma_ref, q)
            x = units.columns(x_ref, q)
            return [a + s * variate(b) for a, s, b in zip(x, sigma, bits, strict=True)]

        return at


def over_steps(
    steps: int,
    draw: Callable[[jax.Array], list[jax.Array]],
    use: Callable[..., object],
    carry: object,
):
    """carry = use(q, draw(q), carry) for each step q, with every draw one turn ahead of its use.

    Drawing bits takes the vector slots; the logarithms of what was drawn have latency, but a slot
    of their own. One turn apart they overlap.
    """

    def turn(q, state):
        carry, bits = state
        following = draw(q)
        return use(q - np.int32(1), bits, carry), following

    first = draw(np.int32(0))
    if steps > 1:
        carry, first = jax.lax.fori_loop(np.int32(1), np.int32(steps), turn, (carry, first))
    return use(np.int32(steps - 1), first, carry)
