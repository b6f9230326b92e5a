"""The values of each perturbed row in order: the code of a sample is its sort keys, ascending.

The order is that of `jnp.sort`: NaN last. Others are those of another sort key, see `SORTS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.draws import Draws, perturbed
from perturbk.kernels.ranking import SORT_KEYS
from perturbk.kernels.tuning import TUNING


def _value(key: jax.Array) -> jax.Array:
    """The float32 value of which `ranking.sort_key` made a key; of both zeros +0."""
    magnitude = lax.bitcast_convert_type(jnp.where(key < 0, -key, key), jnp.float32)
    return jnp.where(key < 0, -magnitude, magnitude)


def _descending_value(key: jax.Array) -> jax.Array:
    return -_value(key)


@dataclasses.dataclass(frozen=True)
class Sort:
    """An order in which values are put.

    Attributes:
        ranking: its name in `ranking.SORT_KEYS`.
        value: sort key -> value, float32.
    """

    ranking: str
    value: Callable[[jax.Array], jax.Array]

    def output(self, key: jax.Array, factor: jax.Array) -> jax.Array:
        """The value; 0 for what weighs nothing, as padding does, which adds nothing even if it is
        infinite."""
        return jnp.where(factor == 0, np.float32(0), self.value(key))

    @property
    def key(self) -> Callable[[jax.Array], jax.Array]:
        """y -> int32 keys, of which the smallest comes first."""
        return SORT_KEYS[self.ranking]


SORTS = {
    "sort": Sort("ranking", _value),
    "sort_descending": Sort("ranking_descending", _descending_value),
    "sort_nan_first": Sort("ranking_nan_first", _descending_value),
}

IN_ORDER = (*SORT_KEYS, *SORTS)  # ops that put all of a row in order


def ascending(key: jax.Array) -> jax.Array:
    """int32 keys in ascending order along axis -2 (lanes last)."""
    on_cpu = _by_xla if key.shape[-2] > TUNING.sorting_network_most else _by_network
    return lax.platform_dependent(key, cpu=on_cpu, default=_by_rows)


def _by_xla(key: jax.Array) -> jax.Array:
    return lax.sort(key, dimension=key.ndim - 2, is_stable=False)


def _by_rows(key: jax.Array) -> jax.Array:
    """Neighbours in memory: else XLA does not leave it to a GPU's library, ten times as fast."""
    return lax.sort(key.swapaxes(-1, -2), is_stable=False).swapaxes(-1, -2)


def _by_network(key: jax.Array) -> jax.Array:
    """Batcher's bitonic network (1968), all lanes at once; XLA on a CPU compares one by one."""
    *lead, d, lanes = key.shape
    width = 1 << (d - 1).bit_length()
    padding = [(0, 0, 0)] * len(lead) + [(0, width - d, 0), (0, 0, 0)]
    key = lax.pad(key, np.int32(0x7FFFFFFF), padding)
    axis, size = len(lead) + 1, 2
    while size <= width:
        distance = size // 2
        while distance:
            pairs = key.reshape(*lead, width // (2 * distance), 2, distance, lanes)
            first, second = (lax.slice_in_dim(pairs, i, i + 1, axis=axis) for i in range(2))
            upper = lax.broadcasted_iota(jnp.int32, pairs.shape, axis) == 1
            block = lax.broadcasted_iota(jnp.int32, pairs.shape, axis - 1)
            descending = block & np.int32(size // (2 * distance)) != 0
            pairs = jnp.where(upper ^ descending, lax.max(first, second), lax.min(first, second))
            # Fused, every level would compute the one below it twice.
            key = lax.optimization_barrier(pairs.reshape(*lead, width, lanes))
            distance //= 2
        size *= 2
    return lax.slice_in_dim(key, 0, d, axis=len(lead))


def codes(
    draw: Draws,
    x: jax.Array,
    sigma: jax.Array,
    num_lanes: int,
    *,
    key: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Sort keys of a block in order: int32 [rows, shared, d, lanes]; arguments as `argmax.codes`.

    `key` is that of one of `SORTS`.
    """
    return ascending(perturbed(draw, x, sigma, num_lanes, key))


def weighted(codes: jax.Array, weights: jax.Array, d: int, *, sort: Sort) -> jax.Array:
    """sum_s W_s sort(y_s): codes [..., rows, d, N] and weights [..., N] -> [..., rows, d]."""
    del d
    weights = weights[..., None, None, :]
    return jnp.sum(weights * sort.output(codes, weights), -1)


def dot(codes: jax.Array, cotangent: jax.Array, *, sort: Sort) -> jax.Array:
    """<sort(y_s), g>, summed over rows: [..., rows, d, N] and [..., rows, d] -> [..., N]."""
    cotangent = cotangent[..., None]
    return jnp.sum(cotangent * sort.output(codes, cotangent), (-3, -2))
