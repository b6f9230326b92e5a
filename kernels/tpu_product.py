"""The product of the score with a tangent, in the kernel that draws the noise for an op."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from perturbk.kernels.tpu_cut import VECTOR
from perturbk.kernels.tpu_rows import Rows
from perturbk.kernels.tpu_steps import columns


class Product:
    """<h_1(z), t>: an operand and a result more of a kernel, or none if t is None.

    The lists here hold one entry, or none.

    Args:
        rows: those that the kernel perturbs.
        t: like x, [groups, shared, rows, d].
    """

    def __init__(self, rows: Rows, t: jax.Array | None):
        self.rows, units = rows, rows.units
        self.operands = [] if t is None else [units.by_coordinate(t.reshape(-1, rows.shape[3]), 0)]
        self.in_specs = [units.coordinate_spec] * len(self.operands)
        self.out_specs = [units.tile_spec()] * len(self.operands)
        self.out_shapes = [units.tile_shape(jnp.float32)] * len(self.operands)

    def split(self, refs, num_results: int) -> tuple[list, list, list]:
        """(refs to t, to the kernel's own results, to the product) of those behind its operands."""
        extra = len(self.operands)
        return refs[:extra], refs[extra : extra + num_results], refs[extra + num_results :]

    def clear(self, dot_refs) -> None:
        """Before the first piece of a row."""
        for ref in dot_refs:
            ref[...] = jnp.zeros(VECTOR, jnp.float32)

    def add(self, product: list[jax.Array], t_refs, q, bits: list[jax.Array]) -> list[jax.Array]:
        """The product with step q, from the bits of its coordinates."""
        moment = self.rows.math.moment
        out = []
        for total, t_ref in zip(product, t_refs, strict=True):
            for a, b in zip(columns(self.rows.units, t_ref, q), bits, strict=True):
                total = total + a * moment(b, 1, 0)
            out.append(total)
        return out

    def of_samples(self, found: list[jax.Array]) -> list[jax.Array]:
        """What the kernel gave, as [groups, shared, N]."""
        units = self.rows.units
        shape = (*self.rows.shape[:2], -1, units.num_samples)
        return [jnp.sum(units.from_samples(a).reshape(shape), 2) for a in found]
