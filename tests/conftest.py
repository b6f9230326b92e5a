"""Settings, strict and quick, and fixtures: every implementation, and no programs left behind."""

import gc

import jax
import pytest

from checks import ON_A_CPU

jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs are built of millions of objects, of which few are garbage: to look for it took a tenth
# of the time, and where each equation came from, which no test asks for, a thirtieth.
gc.set_threshold(20_000, 10, 10)
jax.config.update("jax_traceback_in_locations_limit", 0)


@pytest.fixture(params=ON_A_CPU)
def implementation(request) -> str:
    return request.param


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs of all files together would take gigabytes."""
    yield
    jax.clear_caches()
