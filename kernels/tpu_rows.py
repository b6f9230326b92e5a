"""Perturbed rows on a TPU: the operands x, sigma and keys, cut into units, and y = x + sigma z."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from perturbk.kernels.streams import Stream
from perturbk.kernels.tpu_bits import bits_of
from perturbk.kernels.tpu_cut import VECTOR
from perturbk.kernels.tpu_steps import columns


class Rows:
    """Operands of `xla.py` for the kernels of the ops; a plane is (group, shared vector, row)."""

    def __init__(
        self,
        keys,
        x,
        sigma,
        *,
        noise: str,
        inner: int,
        platform: str,
        stream: Stream,
        fill: float,
        whole=False,
    ):
        self.shape = groups, shared, rows, d = x.shape
        planes = groups * shared * rows
        static = dict(stream=stream, platform=platform, inner=inner, whole=whole)
        self.bits = bits_of(keys, shared, rows, d, **static)
        self.units = units = self.bits.units
        self.math = stream.math(noise)
        sigma = jnp.broadcast_to(sigma, (*x.shape[:3], sigma.shape[3]))
        # One sigma for a whole row is a vector; otherwise it is spread like x.
        self.uniform = sigma.shape[3] == 1
        if self.uniform:
            sigma, sigma_spec = units.by_plane(sigma.reshape(-1)), units.unit_spec
        else:
            sigma = units.by_coordinate(sigma.reshape(planes, d), 1)
            sigma_spec = units.coordinate_spec
        self.operands: Sequence[jax.Array] = [
            *self.bits.operands,
            units.by_coordinate(x.reshape(planes, d), fill),
            sigma,
        ]
        self.in_specs: Sequence[pl.BlockSpec] = [
            *self.bits.in_specs,
            units.coordinate_spec,
            sigma_spec,
        ]

    def perturbed(self, x_ref, sigma_ref) -> Callable[..., list[jax.Array]]:
        """(step, bits of its coordinates) -> y of its coordinates, a vector of units for each."""
        variate, units = self.math.variate, self.units

        def at(q, bits: list[jax.Array]) -> list[jax.Array]:
            if self.uniform:
                sigma = [jnp.broadcast_to(sigma_ref[...], VECTOR)] * len(bits)
            else:
                sigma = columns(units, sigma_ref, q)
            x = columns(units, x_ref, q)
            return [a + s * variate(b) for a, s, b in zip(x, sigma, bits, strict=True)]

        return at
