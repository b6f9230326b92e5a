"""What a platform's kernels may do in their own way; all the rest of them is plain `jnp`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels import bitonic

ANGLE = np.float32(2 * np.pi / 2**32)  # of one uint32 step of a turn, in radians


def _log2(a: jax.Array) -> jax.Array:
    return jnp.log(a) * np.float32(1 / np.log(2))


def _product(a: jax.Array, b: np.uint32) -> tuple[jax.Array, jax.Array]:
    return lax.mulhi(a, jnp.full_like(a, b)), a * b


def _ascending(values: Sequence[jax.Array]) -> Sequence[jax.Array]:
    return tuple(lax.sort(jnp.stack(values), dimension=0))


def _inverse(places: Sequence[jax.Array], _: int) -> Sequence[jax.Array]:
    places = jnp.stack(places)
    numbers = lax.broadcasted_iota(jnp.float32, places.shape, 0)
    return tuple(jnp.put_along_axis(numbers, places, numbers, 0, inplace=False))


def _sums(
    places: Sequence[jax.Array | int], values: Sequence[jax.Array], width: int
) -> Sequence[jax.Array]:
    _, lanes = values[0].shape
    place = lax.iota(jnp.int32, width)[:, None]
    total = sum(
        jnp.sum(jnp.where(place == at, value, np.float32(0)), 1)
        for at, value in zip(places, values, strict=True)
    )
    total = jnp.pad(total, (0, -width % lanes))
    return tuple(total.reshape(-1, 1, lanes))


def _ascending_rows(tile: jax.Array, across: int) -> jax.Array:
    return lax.sort(tile, dimension=0)[bitonic.places(len(tile), across)[:, 0]]


def _cos_sin(turn: jax.Array) -> tuple[jax.Array, jax.Array]:
    a = lax.bitcast_convert_type(turn, jnp.int32).astype(jnp.float32) * ANGLE
    return jnp.cos(a), jnp.sin(a)


def negative(a: jax.Array) -> jax.Array:
    """-a, as a product, which a compiler makes a part of other instructions.

    A lowering that subtracts from zero takes one for it, since that is not the same at zero.
    """
    return a * np.float32(-1)


def rotate(a: jax.Array, places: int) -> jax.Array:
    """uint32 words with their bits rotated to the left."""
    return (a << np.uint32(places)) | (a >> np.uint32(32 - places))


@dataclasses.dataclass(frozen=True)
class Machine:
    """Elementwise functions; the defaults run anywhere that XLA does.

    Attributes:
        opaque: uint32 values, hidden from the compiler's algebra, and made anew where others are.
        rotates: (a, places) -> uint32 values rotated to the left, in ways that take turns.
        product: (high, low) words of the product of uint32 values and a constant.
        log: natural logarithm of positive normal float32 values, with an error of 2^-22, absolutely
            above one half, else relatively; not for noise that must equal `jax.random`'s.
        log2: the binary one, likewise.
        log2_of_negative: of values that are negative, that of their size.
        full_log: natural logarithm of the same values within 1 ulp, also for such noise.
        erf_inv: inverse error function of float32 values between -1 and 1, also for such noise.
        sqrt: square root of float32 values of at least zero, with a relative error of 2^-22; not
            for such noise either.
        cos_sin: uint32 turns, of which 2^32 are one -> cosine and sine, with an error of 2^-20; not
            for any noise that must be the same everywhere.
        fma: (a, b, c) -> a b + c, in one instruction where there is one.
        ascending: integer arrays of one shape -> the same values, elementwise in order.
        inverse: (int32 arrays of one shape, elementwise a permutation of 0, 1, ...; threads of a
            program) -> the inverse permutation, float32.
        sums: (places, each int32 [1, lanes], elementwise different, or one number; values of them,
            float32 [1, lanes]; width, a power of two from 4 on that is as large) -> float32
            [1, lanes], one behind the other, where lane i holds a part of what all lanes have at
            place i % width; None if registers are the better place for sums.
        ascending_rows: (tile, across) -> the same values, in order along `bitonic.places`.
        exchanged: (int32 words [tile, lanes], numbers of their places, of others; threads) -> words
            of the other places; None if they go through a ref.
        barrier: what a program's threads stored before it, all of them may load behind it.
    """

    opaque: Callable[..., jax.Array] = lambda a, *others: a
    product: Callable[[jax.Array, np.uint32], tuple[jax.Array, jax.Array]] = _product
    rotates: tuple[Callable[[jax.Array, int], jax.Array], ...] = (rotate,)
    log: Callable[[jax.Array], jax.Array] = jnp.log
    log2: Callable[[jax.Array], jax.Array] = _log2
    log2_of_negative: Callable[[jax.Array], jax.Array] = lambda a: _log2(negative(a))
    full_log: Callable[[jax.Array], jax.Array] = jnp.log
    erf_inv: Callable[[jax.Array], jax.Array] = lax.erf_inv
    sqrt: Callable[[jax.Array], jax.Array] = jnp.sqrt
    cos_sin: Callable[[jax.Array], tuple[jax.Array, jax.Array]] = _cos_sin
    fma: Callable[..., jax.Array] = lambda a, b, c: a * b + c
    ascending: Callable[[Sequence[jax.Array]], Sequence[jax.Array]] = _ascending
    inverse: Callable[[Sequence[jax.Array], int], Sequence[jax.Array]] = _inverse
    sums: Callable[..., Sequence[jax.Array]] | None = _sums
    ascending_rows: Callable[[jax.Array, int], jax.Array] = _ascending_rows
    exchanged: Callable[..., jax.Array] | None = None
    barrier: Callable[[], None] = lambda: None


PLAIN = Machine()
