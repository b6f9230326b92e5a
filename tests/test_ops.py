"""The public ops: their errors. Their values are tested as spellings."""

import jax.numpy as jnp
import pytest

from perturbk.ops import argmax_one_hot, ranking


@pytest.mark.parametrize("fun", [argmax_one_hot, ranking])
def test_errors_name_the_argument(fun):
    with pytest.raises(ValueError, match="x must have at least one axis"):
        fun(1.0)
    with pytest.raises(ValueError, match="entries along axis 1"):
        fun(jnp.zeros((2, 0)))
    with pytest.raises(ValueError, match="axis must be from -1 to 0"):
        fun(jnp.zeros(5), axis=1)
    with pytest.raises(TypeError, match="axis must be an int, got None"):
        fun(jnp.zeros(5), axis=None)
