"""The kernels in plain XLA, all samples at once: for few samples on a TPU.

Its fused kernels fill a vector with 128 samples of a row. Of few samples XLA fills the vectors with
coordinates instead, if they come last, and fuses the noise into what is made of it. Operands as in
`xla.py` and `xla_score.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from perturbk.kernels.blocks import pad_to
from perturbk.kernels.draws import Draws
from perturbk.kernels.ops import op_math
from perturbk.kernels.streams import THREEFRY, Stream

_LANES = 128  # of a TPU's vector


def _words(keys: jax.Array) -> tuple[jax.Array, ...]:
    """[groups, words, N] -> of each word [groups, N, 1, 1]."""
    return tuple(keys[:, i, :, None, None] for i in range(keys.shape[1]))


def samples(
    keys, x, sigma, *, op: str, noise: str, inner: int, stream: Stream = THREEFRY
) -> jax.Array:
    """Codes of every sample: [groups, shared, rows, *code, N]."""
    groups, _, rows, d = x.shape
    row = lax.broadcasted_iota(jnp.uint32, (1, 1, rows, 1), 2)
    draw = Draws(stream, noise, _words(keys), row, d, inner)
    shape = groups, keys.shape[2], rows, d
    z = draw(lax.broadcasted_iota(jnp.uint32, shape, 3))
    sigma = jnp.broadcast_to(sigma, (*x.shape[:3], sigma.shape[3]))
    y = x[:, :, None] + sigma[:, :, None] * z[:, None]  # [groups, shared, N, rows, d]
    return jnp.moveaxis(op_math(op).of_values(y), 2, -1)


def op_sum(keys, x, sigma, weights, *, op: str, **which) -> jax.Array:
    """sum_s W_s op(x + sigma z_s): weights [groups, shared, N] -> [groups, shared, rows, out]."""
    return op_math(op).weighted(samples(keys, x, sigma, op=op, **which), weights, x.shape[3])


def op_dot(keys, x, sigma, cotangent, *, op: str, **which) -> jax.Array:
    """<op(x + sigma z_s), g> per sample: g [groups, shared, rows, out] -> [groups, shared, N]."""
    return op_math(op).dot(samples(keys, x, sigma, op=op, **which), cotangent)


class _Moments:
    """h_m(z) z^n of every sample and element of a leaf, as a plane of elements for each sample."""

    def __init__(self, keys, size: int, noise: str, order: int, power: int, stream: Stream):
        rows, length = stream.rows(size)
        at = lax.broadcasted_iota(jnp.uint32, (rows, length), 1)
        row = lax.broadcasted_iota(jnp.uint32, (1, 1, rows, 1), 2)
        if rows == 1:  # in as many as fill a vector
            at = pad_to(at, -(-length // _LANES) * _LANES, 1).reshape(-1, _LANES)
        draws = Draws(stream, noise, _words(keys), row, length, 1)
        self.plane = at.shape
        at = jnp.broadcast_to(at, (keys.shape[0], keys.shape[2], *at.shape))
        self.values = draws.math.moment(draws.drawn(at), order, power)

    def in_plane(self, v: jax.Array) -> jax.Array:
        """[..., E] -> [..., *plane], zero-padded."""
        v = pad_to(v, self.plane[0] * self.plane[1], v.ndim - 1)
        return v.reshape(*v.shape[:-1], *self.plane)


def score_dot(
    keys, v, *, noise: str, order: int, power: int, stream: Stream = THREEFRY
) -> jax.Array:
    """S t: keys uint32 [groups, words, N], v [groups, shared, E] -> [groups, shared, N]."""
    moments = _Moments(keys, v.shape[2], noise, order, power, stream)
    return jnp.sum(moments.in_plane(v)[:, :, None] * moments.values[:, None], (-2, -1))


def score_sum(
    keys, w, *, size: int, noise: str, order: int, power: int, stream: Stream = THREEFRY
) -> jax.Array:
    """S^T w: keys uint32 [groups, words, N], w [groups, shared, N] -> [groups, shared, size]."""
    moments = _Moments(keys, size, noise, order, power, stream)
    out = jnp.sum(w[..., None, None] * moments.values[:, None], 2)
    return out.reshape(*out.shape[:2], -1)[..., :size]
