"""Strict JAX settings, and fixtures: every implementation, and no programs left behind."""

import jax
import pytest

from checks import ON_A_CPU

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=ON_A_CPU)
def implementation(request) -> str:
    return request.param


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs of all files together would take gigabytes."""
    yield
    jax.clear_caches()
