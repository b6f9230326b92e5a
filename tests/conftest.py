"""Strict JAX settings, and the fixture that runs a test on every implementation."""

import jax
import pytest

from checks import ON_A_CPU

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=ON_A_CPU)
def implementation(request) -> str:
    return request.param
