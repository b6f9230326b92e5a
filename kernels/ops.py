"""The table of ops that have kernels. A new op is a new file and one line here.

An op turns a perturbed row of d values into d outputs that are piecewise constant in the row.
What a sample chose is kept as a *code*, small integers with the samples on the last axis; the
outputs are linear in weights on the samples, and that is all that differentiation needs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perturbk.kernels import argmax, ranking


@dataclasses.dataclass(frozen=True)
class OpMath:
    """The tile mathematics of one op, in plain `jnp` on values.

    Attributes:
        codes: (draw, x, sigma, num_lanes) -> codes of a block, see `argmax.codes`.
        code_shape: d -> shape of one row's code.
        code_dtype: d -> its dtype.
        weighted: (codes, weights, d) -> sum over samples of weight times output.
        dot: (codes, cotangent) -> inner product of each sample's output with a cotangent.
        largest: d -> largest value among the outputs.
        streamed: whether codes are as large as the noise, so that sums are best taken block by
            block rather than from stored codes.
    """

    codes: Callable[..., jax.Array]
    code_shape: Callable[[int], tuple[int, ...]]
    code_dtype: Callable[[int], type]
    weighted: Callable[[jax.Array, jax.Array, int], jax.Array]
    dot: Callable[[jax.Array, jax.Array], jax.Array]
    largest: Callable[[int], int]
    streamed: bool


def _ranking(key: Callable[[jax.Array], jax.Array]) -> OpMath:
    """Ranks in the order of a sort key."""
    return OpMath(
        codes=functools.partial(ranking.codes, key=key),
        code_shape=lambda d: (d,),
        code_dtype=ranking.code_dtype,
        weighted=ranking.weighted,
        dot=ranking.dot,
        largest=lambda d: d - 1,
        streamed=True,
    )


OPS: dict[str, OpMath] = {
    "argmax": OpMath(
        codes=argmax.codes,
        code_shape=lambda d: (),
        code_dtype=lambda d: jnp.int32,
        weighted=argmax.weighted,
        dot=argmax.dot,
        largest=lambda d: 1,
        streamed=False,
    ),
    **{name: _ranking(key) for name, key in ranking.SORT_KEYS.items()},
}
