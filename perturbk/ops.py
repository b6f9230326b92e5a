"""The ops that have kernels, as public functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn
from jax.typing import ArrayLike


def argmax_one_hot(x: ArrayLike, axis: int = -1) -> jax.Array:
    """One-hot encoding of the argmax, a vertex of the simplex.

    Args:
        x: real array with at least one axis.
        axis: the axis over which to take the argmax, not empty.

    Returns:
        Array of x's shape in the default float dtype (float32 unless x64 is enabled), whatever
        x's dtype: one at the first maximum along the axis, or the first NaN; zero elsewhere.

    Raises:
        TypeError: axis is not an int.
        ValueError: x has no such axis, or it is empty.

    Example:
        >>> import jax.numpy as jnp, perturbk
        >>> print(perturbk.argmax_one_hot(jnp.array([1.0, 3.0, 3.0])))
        [0. 1. 0.]

    Source: Berthet et al. 2020, Learning with Differentiable Perturbed Optimizers,
    arXiv 2002.08676, section 2 (a linear program over the simplex).
    """
    x, axis = _checked(x, axis)
    return nn.one_hot(jnp.argmax(x, axis), x.shape[axis], axis=axis)


def ranking(x: ArrayLike, axis: int = -1, descending: bool = False) -> jax.Array:
    """Rank of each entry along an axis, counted from zero.

    Args:
        x: real array with at least one axis.
        axis: the axis along which to rank, not empty.
        descending: whether rank 0 is the largest entry rather than the smallest.

    Returns:
        Integer array (int32 unless x64 is enabled) of x's shape. Of equal entries the one with
        the lower index has the lower rank; -0 equals +0; NaN ranks last in both directions.

    Raises:
        TypeError: axis is not an int.
        ValueError: x has no such axis, or it is empty.

    Example:
        >>> import jax.numpy as jnp, perturbk
        >>> x = jnp.array([0.5, 2.0, 0.5])
        >>> print(perturbk.ranking(x), perturbk.ranking(x, descending=True))
        [0 2 1] [1 0 2]

    Source: Berthet et al. 2020, arXiv 2002.08676, section 4 (a linear program over the
    permutahedron; Blondel et al. 2020, arXiv 2002.08871).
    """
    x, axis = _checked(x, axis)
    return jnp.argsort(jnp.argsort(-x if descending else x, axis), axis)


def top_k(x: ArrayLike, k: int, axis: int = -1) -> jax.Array:
    """k-hot mask of the k largest entries along an axis; with k = 1, a one-hot argmax.

    Args:
        x: real array with at least one axis.
        k: how many, from 1 to the length of the axis. Up to 32 have kernels.
        axis: the axis along which to select, not empty.

    Returns:
        Array of x's shape in the default float dtype (float32 unless x64 is enabled), whatever
        x's dtype: one at the k largest entries along the axis, zero elsewhere. They are those of
        `jax.lax.top_k`: of equal entries the one with the lower index comes first, but +0 is
        larger than -0; NaN is larger than inf, and NaN with its sign bit set smaller than -inf.

    Raises:
        TypeError: k or axis is not an int.
        ValueError: k is not from 1 to the length of the axis; x has no such axis, or it is empty.

    Example:
        >>> import jax.numpy as jnp, perturbk
        >>> print(perturbk.top_k(jnp.array([1.0, 3.0, 0.0, 1.0]), 2))
        [1. 1. 0. 0.]

    Source: Berthet et al. 2020, arXiv 2002.08676, section 2 (a linear program over the convex hull
    of k-hot vectors); Cordonnier et al. 2021, Differentiable Patch Selection for Image
    Recognition, arXiv 2104.03059, section 3. The latter's sorted indices are
    ``jax.lax.top_k(x, k)[1]``, which is recognised too.
    """
    x, axis = _checked(x, axis)
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"k must be an int, got {k!r}. It sets shapes, so it cannot be traced.")
    if not 1 <= k <= x.shape[axis]:
        raise ValueError(
            f"k must be from 1 to {x.shape[axis]}, the length of axis {axis} of x of shape "
            f"{x.shape}, got {k}."
        )
    _, best = lax.top_k(x, int(k), axis=axis)
    return nn.one_hot(best, x.shape[axis], axis=axis).sum(axis + 1)


def _checked(x: ArrayLike, axis: int) -> tuple[jax.Array, int]:
    """x as an array and axis as a non-negative int."""
    x = jnp.asarray(x)
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(
            f"axis must be an int, got {axis!r}. For several axes, reshape x to join them first."
        )
    if x.ndim == 0:
        raise ValueError("x must have at least one axis, got a scalar. Pass a vector of scores.")
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"axis must be from {-x.ndim} to {x.ndim - 1} for x of shape {x.shape}, got {axis}."
        )
    axis = int(axis) % x.ndim
    if x.shape[axis] == 0:
        raise ValueError(
            f"x must have entries along axis {axis}, got shape {x.shape}. Pass another axis, or "
            "skip empty inputs."
        )
    return x, axis
