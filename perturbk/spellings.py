"""The ops that have kernels, in all the ways that users spell them.

`perturbk.recognise` compares a user's function with the table `SPELLINGS`. A new spelling is one
line there. It must equal the reference of its op on every float input: ties (the first index
comes first), both zeros (equal, but in a top-k), infinities, and NaN (the first one wins an argmax;
ranked last). The tests run every line on such inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn

from perturbk.kernels.ops import sized


@dataclasses.dataclass(frozen=True)
class Op:
    """Which op an output leaf is.

    Attributes:
        name: its kernel, a key as described in `perturbk.kernels.ops`.
        axis: the axis that it works along, not negative.
    """

    name: str
    axis: int


@dataclasses.dataclass(frozen=True)
class Spelling:
    """One way to write an op.

    Attributes:
        op: axis -> the op; (axis, k) -> the op if it is one of a number.
        head: the primitive that every jaxpr of it contains; other cones are not compared.
        write: (x, axis, n, dtype) -> the op's value, n being x.shape[axis]; k follows if it is an
            op of a number. Whatever follows as a conversion of dtype is recognised anyway, so
            `dtype` is only for what comes before.
        where: "any" axis, the "last" one, or "vector" for x with one axis only. Forms lifted by
            `jax.vmap` are derived from all three.
        sized: whether it is an op of a number, k.
    """

    op: Callable[..., Op]
    head: str
    write: Callable[..., jax.Array]
    where: str = "any"
    sized: bool = False

    def forms(
        self, ndim: int, dtype, k: int | None = None
    ) -> list[tuple[Op, Callable[[jax.Array], jax.Array]]]:
        """The functions of an x with `ndim` axes that this line stands for, with their ops."""
        number = (k,) if self.sized else ()

        def written(axis: int) -> Callable[[jax.Array], jax.Array]:
            return lambda x: self.write(x, axis, x.shape[axis], dtype, *number).astype(dtype)

        found = []
        for axis in range(ndim):
            for mapped in range(axis + 1):
                rest = ndim - mapped  # axes that are left after mapping the leading ones
                last = axis == ndim - 1
                if rest == 1 or self.where == "any" or (self.where == "last" and last):
                    f = written(axis - mapped)
                    for _ in range(mapped):
                        f = jax.vmap(f)
                    found.append((self.op(axis, *number), f))
            if axis < ndim - 1:
                f = written(0)
                for _ in range(ndim - 1 - axis):
                    f = jax.vmap(f, in_axes=-1, out_axes=-1)
                for _ in range(axis):
                    f = jax.vmap(f)
                found.append((self.op(axis, *number), f))
        return found


def _argmax(axis: int) -> Op:
    return Op("argmax", axis)


def _ascending(axis: int) -> Op:
    return Op("ranking", axis)


def _descending(axis: int) -> Op:
    return Op("ranking_descending", axis)


def _nan_first(axis: int) -> Op:
    return Op("ranking_nan_first", axis)


def _sort(axis: int) -> Op:
    return Op("sort", axis)


def _sort_descending(axis: int) -> Op:
    return Op("sort_descending", axis)


def _sort_nan_first(axis: int) -> Op:
    return Op("sort_nan_first", axis)


def _top_k(axis: int, k: int) -> Op:
    return Op(sized("top_k", k), axis)


def _top_k_indices(axis: int, k: int) -> Op:
    return Op(sized("top_k_indices", k), axis)


def _winner(x: jax.Array, axis: int) -> jax.Array:
    return jnp.argmax(x, axis, keepdims=True)


def _inverse(order: jax.Array, dtype) -> jax.Array:
    """Ranks from the order that sorts: the inverse permutation, by a scatter."""
    n = order.shape[0]
    return jnp.zeros(n, dtype).at[order].set(jnp.arange(n).astype(dtype))


def _best(x: jax.Array, k: int, axis: int = -1) -> jax.Array:
    return lax.top_k(x, k, axis=axis)[1]


def _written(
    op: Callable[..., Op], head: str, where: str, *writes, sized: bool = False
) -> tuple[Spelling, ...]:
    return tuple(Spelling(op, head, write, where, sized) for write in writes)


SPELLINGS: tuple[Spelling, ...] = (
    *_written(
        _argmax,
        "argmax",
        "any",
        lambda x, a, n, dt: nn.one_hot(jnp.argmax(x, a), n, dtype=dt, axis=a),
        lambda x, a, n, dt: nn.one_hot(lax.argmax(x, a, np.int32), n, dtype=dt, axis=a),
        lambda x, a, n, dt: lax.broadcasted_iota(int, x.shape, a) == _winner(x, a),
        lambda x, a, n, dt: _winner(x, a) == lax.broadcasted_iota(int, x.shape, a),
    ),
    *_written(
        _argmax,
        "argmax",
        "last",
        lambda x, a, n, dt: jnp.eye(n, dtype=dt)[jnp.argmax(x, a)],
        lambda x, a, n, dt: jnp.arange(n) == _winner(x, a),
        lambda x, a, n, dt: _winner(x, a) == jnp.arange(n),
        lambda x, a, n, dt: jnp.where(jnp.arange(n) == _winner(x, a), 1.0, 0.0),
        lambda x, a, n, dt: jnp.where(jnp.arange(n) == _winner(x, a), 1, 0),
    ),
    *_written(
        _argmax,
        "argmax",
        "vector",
        lambda x, a, n, dt: jnp.arange(n) == jnp.argmax(x),
        lambda x, a, n, dt: jnp.argmax(x) == jnp.arange(n),
        lambda x, a, n, dt: jnp.where(jnp.arange(n) == jnp.argmax(x), 1.0, 0.0),
        lambda x, a, n, dt: jnp.where(jnp.arange(n) == jnp.argmax(x), 1, 0),
        lambda x, a, n, dt: jnp.zeros(n, dt).at[jnp.argmax(x)].set(dt.type(1).item()),
    ),
    *_written(
        _ascending,
        "sort",
        "any",
        lambda x, a, n, dt: jnp.argsort(jnp.argsort(x, a), a),
    ),
    *_written(
        _ascending,
        "sort",
        "vector",
        lambda x, a, n, dt: _inverse(jnp.argsort(x), dt),
    ),
    *_written(
        _descending,
        "sort",
        "any",
        lambda x, a, n, dt: jnp.argsort(jnp.argsort(-x, a), a),
    ),
    *_written(
        _descending,
        "sort",
        "vector",
        lambda x, a, n, dt: _inverse(jnp.argsort(-x), dt),
    ),
    *_written(
        _nan_first,
        "sort",
        "any",
        lambda x, a, n, dt: jnp.argsort(jnp.argsort(x, a, descending=True), a),
    ),
    *_written(
        _nan_first,
        "sort",
        "vector",
        lambda x, a, n, dt: _inverse(jnp.argsort(x, descending=True), dt),
    ),
    *_written(
        _sort,
        "sort",
        "any",
        lambda x, a, n, dt: jnp.sort(x, a),
        lambda x, a, n, dt: jnp.sort(x, a, stable=False),
        lambda x, a, n, dt: lax.sort(x, dimension=a),
    ),
    *_written(
        _sort,
        "sort",
        "vector",
        lambda x, a, n, dt: x[jnp.argsort(x)],
    ),
    *_written(
        _sort_descending,
        "sort",
        "any",
        lambda x, a, n, dt: -jnp.sort(-x, a),
    ),
    *_written(
        _sort_nan_first,
        "sort",
        "any",
        lambda x, a, n, dt: jnp.sort(x, a, descending=True),
        lambda x, a, n, dt: jnp.flip(jnp.sort(x, a), a),
    ),
    *_written(
        _sort_nan_first,
        "sort",
        "last",
        lambda x, a, n, dt: jnp.sort(x, a)[..., ::-1],
    ),
    *_written(
        _sort_nan_first,
        "sort",
        "vector",
        lambda x, a, n, dt: jnp.sort(x)[::-1],
    ),
    *_written(
        _top_k,
        "top_k",
        "any",
        lambda x, a, n, dt, k: nn.one_hot(_best(x, k, a), n, axis=a).sum(a + 1),
        lambda x, a, n, dt, k: nn.one_hot(_best(x, k, a), n, dtype=x.dtype, axis=a).sum(a + 1),
        sized=True,
    ),
    *_written(
        _top_k,
        "top_k",
        "last",
        lambda x, a, n, dt, k: nn.one_hot(_best(x, k), n).sum(-2),
        lambda x, a, n, dt, k: nn.one_hot(_best(x, k), n, dtype=int).sum(-2),
        lambda x, a, n, dt, k: nn.one_hot(_best(x, k), n, dtype=x.dtype).sum(-2),
        lambda x, a, n, dt, k: nn.one_hot(_best(x, k), n, dtype=dt).max(-2),
        lambda x, a, n, dt, k: jnp.eye(n)[_best(x, k)].sum(-2),
        lambda x, a, n, dt, k: (_best(x, k)[..., None] == jnp.arange(n)).any(-2),
        sized=True,
    ),
    *_written(
        _top_k,
        "top_k",
        "vector",
        lambda x, a, n, dt, k: jnp.zeros(n, dt).at[_best(x, k)].set(dt.type(1).item()),
        sized=True,
    ),
    *_written(
        _top_k_indices,
        "top_k",
        "any",
        lambda x, a, n, dt, k: _best(x, k, a),
        sized=True,
    ),
)
