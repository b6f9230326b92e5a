"""Strict JAX settings, and the fixture that runs a test on every implementation."""

import jax
import pytest

from perturbk.implementations import IMPLEMENTATIONS

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request) -> str:
    return request.param
