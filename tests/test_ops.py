"""The public ops: their errors. Their values are tested as spellings."""

import functools

import jax
import jax.numpy as jnp
import pytest

from perturbk.ops import argmax_one_hot, ranking, top_k


@pytest.mark.parametrize("fun", [argmax_one_hot, ranking, functools.partial(top_k, k=1)])
def test_errors_name_the_argument(fun):
    with pytest.raises(ValueError, match="x must have at least one axis"):
        fun(1.0)
    with pytest.raises(ValueError, match="entries along axis 1"):
        fun(jnp.zeros((2, 0)))
    with pytest.raises(ValueError, match="axis must be from -1 to 0"):
        fun(jnp.zeros(5), axis=1)
    with pytest.raises(TypeError, match="axis must be an int, got None"):
        fun(jnp.zeros(5), axis=None)


def test_errors_of_k():
    x = jnp.zeros((2, 5))
    with pytest.raises(ValueError, match=r"k must be from 1 to 5, .*axis 1 .*\(2, 5\), got 0"):
        top_k(x, 0)
    with pytest.raises(ValueError, match=r"k must be from 1 to 2, .*axis 0.*got 3"):
        top_k(x, 3, axis=0)
    with pytest.raises(TypeError, match=r"k must be an int, got 2\.0"):
        top_k(x, 2.0)
    with pytest.raises(TypeError, match="k must be an int, got True"):
        top_k(x, True)
    with pytest.raises(TypeError, match=r"k must be an int, got .*cannot be traced"):
        jax.jit(top_k)(x, 2)
