"""Measurements that the demonstration and the benchmarks share: time, memory, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Times:
    """Seconds per call of several functions, measured in the same rounds."""

    def __init__(self, rounds: dict[str, list[float]]):
        self.rounds = rounds

    def median(self, name: str) -> float:
        """Median seconds per call."""
        return statistics.median(self.rounds[name])

    def ratio(self, name: str, other: str) -> float:
        """Median over the rounds of the time of `name` over that of `other`."""
        pairs = zip(self.rounds[name], self.rounds[other], strict=True)
        return statistics.median(a / b for a, b in pairs)


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float,
    least: int = 5,
    most: int = 101,
    batch_seconds: float = 2e-3,
) -> Times:
    """Times functions in turn, so that what disturbs the machine disturbs all of them.

    Args:
        calls: by name; they return arrays, which are waited for. Compile them before.
        seconds: stop after the round in which this much time has passed,
        least, most: but not before or after so many rounds.
        batch_seconds: a call that is shorter is repeated within a round up to about this long.
    """
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        repeats[name] = max(1, round(batch_seconds / max(_time(call, 3), 1e-7)))
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    start = time.perf_counter()
    for i in range(most):
        if i >= least and time.perf_counter() - start > seconds:
            break
        # Every other round runs backwards: no function always follows the same one.
        for name in names if i % 2 == 0 else names[::-1]:
            rounds[name].append(_time(calls[name], repeats[name]))
    return Times(rounds)


def _time(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / repeats


def temp_bytes(compiled: jax.stages.Compiled) -> int:
    """Peak memory of a program beside its arguments and results, by XLA's own account."""
    analysis: Any = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes)


def max_difference(a: Any, b: Any) -> tuple[float, float]:
    """(largest difference of two arrays, largest absolute value of the second)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.max(np.abs(a - b))), float(np.max(np.abs(b)))


def machine() -> dict[str, str]:
    """Processor, cores, and versions, for the head of a table."""
    device = jax.devices()[0]
    kind = _cpu_model() if device.platform == "cpu" else device.device_kind
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    found = {
        "machine": f"{kind}, {cores} core" + "s" * (cores != 1),
        "python": platform.python_version(),
    }
    for package in ("jax", "jaxlib", "optax"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
