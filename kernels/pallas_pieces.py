"""The winners of rows that fused kernels took in pieces: the best of the pieces', in plain XLA."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.draws import Draws
from perturbk.kernels.streams import Stream


def winners(
    codes: jax.Array,
    keys: jax.Array,
    x: jax.Array,
    sigma: jax.Array,
    *,
    pieces: int,
    length: int,
    best: Callable[[jax.Array, jax.Array], jax.Array],
    noise: str,
    inner: int,
    stream: Stream,
) -> jax.Array:
    """The winners [groups, shared, rows, *code, N], of the dtype of `codes`.

    Their noise is drawn again, and the same comparison made as in a kernel.

    Args:
        codes: coordinates of the winners of all pieces, [groups, shared, rows, n, N].
        keys, x, sigma, inner: as in `xla.py`.
        pieces, length: of a row.
        best: `OpKernel.best`.
    """
    at, d = codes.astype(jnp.int32), x.shape[3]
    row = lax.broadcasted_iota(jnp.int32, (1, 1, x.shape[2], 1, 1), 2)
    words = tuple(keys[:, i, None, None, None] for i in range(keys.shape[1]))
    x, sigma = (
        jnp.take_along_axis(a, at.reshape(*at.shape[:3], -1), 3).reshape(at.shape)
        if a.shape[3] > 1
        else a[..., None]
        for a in (x, sigma)
    )
    y = x + sigma * Draws(stream, noise, words, row, d, inner)(at)
    # A piece that ends early may hold fewer than it has places for.
    piece = np.arange(at.shape[3], dtype=np.int32) * pieces // at.shape[3]
    real = at >= piece.reshape(1, 1, 1, -1, 1) * np.int32(length)
    found = best(y, jnp.broadcast_to(real, y.shape))
    places = found.reshape(*at.shape[:3], -1, at.shape[4])
    return jnp.take_along_axis(codes, places, 3).reshape(found.shape)
