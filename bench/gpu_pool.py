"""Jobs in processes of their own: compiled side by side, on the device one at a time."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

_lock: Any = contextlib.nullcontext()
_lost = ""  # why this process's device answers no more


def _start(lock) -> None:
    global _lock
    _lock = lock


def on_device():
    """A context in which nothing else of the pool is on the device."""
    return _lock


def _guarded(function: Callable, job: Any) -> tuple[Any, str]:
    """(result, what went wrong): a fault of one job must not end the others."""
    global _lost
    if _lost:
        time.sleep(30)  # the other processes are to take what is left
        return None, f"not run, since the process's device was lost: {_lost}"
    try:
        return function(job), ""
    except Exception as error:
        try:
            jax.block_until_ready(jax.numpy.zeros(1) + 1)
        except Exception:
            _lost = str(job)
        return None, f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"


def results(
    function: Callable, jobs: Sequence[Any], workers: int
) -> Iterator[tuple[Any, Any, str]]:
    """(job, function(job), what went wrong) as they end; in this process if workers is 1."""
    if workers == 1:
        for job in jobs:
            yield job, *_guarded(function, job)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, _start, (context.Lock(),)
    ) as pool:
        futures = {pool.submit(_guarded, function, job): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], *future.result()
