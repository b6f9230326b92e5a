"""The tables of ops that have kernels. A new op is a new file and one line here.

An op turns a perturbed row of d values into outputs. Its key is its name, and for an op of a number
k, such as the k largest, ends in the number: "top_k_5". What became of a sample is kept as a
*code*, integers with the samples on the last axis; the outputs are linear in weights on the
samples, and that is all that differentiation needs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels import argmax, ranking, sorting, topk
from perturbk.kernels.tuning import TUNING

_Entry = TypeVar("_Entry")


@dataclasses.dataclass(frozen=True)
class OpMath:
    """The tile mathematics of one op, in plain `jnp` on values.

    Attributes:
        codes: (draw, x, sigma, num_lanes) -> codes of a block, see `argmax.codes`.
        of_values: perturbed values [..., d] -> codes [..., *code], in plain XLA.
        code_shape: d -> shape of one row's code.
        code_dtype: d -> its dtype.
        weighted: (codes, weights, d) -> sum over samples of weight times output.
        dot: (codes, cotangent) -> inner product of each sample's output with a cotangent.
        largest: d -> largest value among the outputs, which are integers; None if they are float32.
        streamed: whether codes may be as large as the noise, so that sums are best taken block by
            block rather than from stored codes.
        out_size: d -> number of outputs of a row.
        constant: d -> whether the outputs are the same for every row of that size.
        output: (number of a code, factor) -> the output that it stands for, float32, where each
            stands for one; finite where the factor is 0.
        stored_together: (d, shared, in_fours) -> how many variates `codes` stores as one.
    """

    codes: Callable[..., jax.Array]
    of_values: Callable[[jax.Array], jax.Array]
    code_shape: Callable[[int], tuple[int, ...]]
    code_dtype: Callable[[int], type]
    weighted: Callable[[jax.Array, jax.Array, int], jax.Array]
    dot: Callable[[jax.Array, jax.Array], jax.Array]
    largest: Callable[[int], int] | None
    streamed: bool
    out_size: Callable[[int], int] = lambda d: d
    constant: Callable[[int], bool] = lambda d: d == 1
    output: Callable[[jax.Array, jax.Array], jax.Array] = lambda code, factor: code.astype(
        jnp.float32
    )
    stored_together: Callable[[int, int, bool], int] = lambda d, shared, in_fours: 1


def _ranking(key: Callable[[jax.Array], jax.Array]) -> OpMath:
    """Ranks in the order of a sort key."""
    return OpMath(
        codes=functools.partial(ranking.codes, key=key),
        of_values=functools.partial(ranking.of_values, key=key),
        code_shape=lambda d: (d,),
        code_dtype=ranking.code_dtype,
        weighted=ranking.weighted,
        dot=ranking.dot,
        largest=lambda d: d - 1,
        streamed=True,
    )


def _sort(sort: sorting.Sort) -> OpMath:
    """The values themselves, in an order."""
    return OpMath(
        codes=functools.partial(sorting.codes, key=sort.key),
        of_values=lambda y: lax.sort(sort.key(y)),
        code_shape=lambda d: (d,),
        code_dtype=lambda d: jnp.int32,
        weighted=functools.partial(sorting.weighted, sort=sort),
        dot=functools.partial(sorting.dot, sort=sort),
        largest=None,
        streamed=True,
        constant=lambda d: False,
        output=sort.output,
    )


def _top_k(k: int) -> OpMath:
    """The k-hot mask of the k largest."""
    return OpMath(
        codes=functools.partial(topk.codes, k=k),
        of_values=lambda y: lax.top_k(y, k)[1].astype(ranking.code_dtype(y.shape[-1])),
        code_shape=lambda d: (k,),
        code_dtype=ranking.code_dtype,
        weighted=topk.weighted,
        dot=topk.dot,
        largest=lambda d: 1,
        streamed=True,
        constant=lambda d: d == k,
    )


def _top_k_indices(k: int) -> OpMath:
    """The indices of the k largest, which are the code itself, as ranks are."""
    return dataclasses.replace(
        _top_k(k),
        weighted=ranking.weighted,
        dot=ranking.dot,
        largest=lambda d: d - 1,
        out_size=lambda d: k,
        constant=lambda d: d == 1,
    )


OPS: dict[str, OpMath] = {
    "argmax": OpMath(
        codes=argmax.codes,
        of_values=lambda y: jnp.argmax(y, -1).astype(ranking.code_dtype(y.shape[-1])),
        code_shape=lambda d: (),
        code_dtype=ranking.code_dtype,
        weighted=argmax.weighted,
        dot=argmax.dot,
        largest=lambda d: 1,
        streamed=False,
        stored_together=argmax.stored_together,
    ),
    **{name: _ranking(key) for name, key in ranking.SORT_KEYS.items()},
    **{name: _sort(sort) for name, sort in sorting.SORTS.items()},
}

# Ops of a number: name -> (k -> op).
SIZED_OPS: dict[str, Callable[[int], OpMath]] = {
    "top_k": _top_k,
    "top_k_indices": _top_k_indices,
}


def sized(name: str, k: int) -> str:
    """The key of an op of a number."""
    return f"{name}_{k}"


def entry(
    op: str, plain: Mapping[str, _Entry], of_number: Mapping[str, Callable[[int], _Entry]]
) -> _Entry:
    """What a table of ops and one of ops of a number hold for a key."""
    if op in plain:
        return plain[op]
    name, _, k = op.rpartition("_")
    return of_number[name](int(k))


def op_math(op: str) -> OpMath:
    """The mathematics of an op, by its key."""
    return entry(op, OPS, SIZED_OPS)


def keeps_codes(op: str, rows: int, d: int, num_samples: int) -> bool:
    """Whether the codes are few enough to keep from the first use to the last."""
    math = op_math(op)
    per_row = int(np.prod(math.code_shape(d))) * np.dtype(math.code_dtype(d)).itemsize
    return rows * num_samples * per_row <= TUNING.residual_bytes or not math.streamed


def of_rows(leaf: jax.Array, x: jax.Array, inner: int) -> jax.Array:
    """Values [groups, shared, E] of a leaf as those of the op's rows x [groups, shared, rows, d].

    inner: as in `xla.py`.
    """
    d = x.shape[-1]
    rows = leaf.reshape(*leaf.shape[:2], -1, d, inner).swapaxes(-1, -2)
    return jnp.broadcast_to(rows.reshape(*leaf.shape[:2], -1, d), x.shape)
