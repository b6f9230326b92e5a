"""Benchmarks of all workloads: `python -m pytest bench`, grouped by workload.

No result is timed before it has been compared with optax's for the same key.
`python -m pytest --benchmark-disable bench` runs everything once, with fewer samples.
"""

from __future__ import annotations

import functools

import jax
import pytest
from cases import LIBRARIES, Case, cases

from perturbk.demo_measure import machine


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        found = cases(cheap=metafunc.config.getoption("benchmark_disable"))
        metafunc.parametrize("case", found, ids=[case.name for case in found])


@functools.cache
def checked(case: Case) -> float:
    """Relative difference of the two libraries, which is rounding or an error."""
    return case.check(case.call("perturbk")(), case.call("optax")())


@pytest.mark.parametrize("library", LIBRARIES)
def test_speed(case: Case, library: str, benchmark) -> None:
    difference = checked(case)
    call = case.call(library)
    jax.block_until_ready(call())
    benchmark.group = case.name
    benchmark.extra_info.update(
        machine(), temp_bytes=case.temp_bytes(library), difference_from_optax=difference
    )
    benchmark(lambda: jax.block_until_ready(call()))
    if benchmark.stats:
        median = benchmark.stats.stats.median
        benchmark.extra_info["ns_per_variate"] = 1e9 * median / case.workload.variates
