"""Jobs in processes of their own: compiled side by side, then run on the device one at a time.

Nothing else is compiled or run while a job is timed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# What a job does: compile at first, and then, in the call that is returned, run.
Prepare = Callable[[Any], Callable[[], Any]]


def results(
    prepare: Prepare, jobs: Sequence[Any], workers: int, seconds: float = float("inf")
) -> Iterator[tuple[int, Any, str]]:
    """(index of the job, what it found, what went wrong) as they end.

    Args:
        workers: processes; one is this process.
        seconds: what is not compiled by then is not run.
    """
    deadline = time.time() + seconds
    shares = [range(i, len(jobs), workers) for i in range(workers)]
    if workers == 1:
        found = queue.SimpleQueue()
        _work(prepare, jobs, shares[0], deadline, None, contextlib.nullcontext(), found)
        for _ in jobs:
            yield found.get()
        return
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    all_compiled, device = context.Barrier(workers), context.Lock()
    processes = [
        context.Process(
            target=_work, args=(prepare, jobs, share, deadline, all_compiled, device, found)
        )
        for share in shares
    ]
    for process in processes:
        process.start()
    left = len(jobs)
    while left:
        try:
            yield found.get(timeout=10)
            left -= 1
        except queue.Empty:
            if not any(process.is_alive() for process in processes):
                raise RuntimeError(f"the processes ended, and {left} jobs have no result") from None
    for process in processes:
        process.join()


def _work(prepare: Prepare, jobs, share, deadline, all_compiled, device, found) -> None:
    calls: dict[int, Callable[[], Any]] = {}
    for i in share:
        if time.time() > deadline:
            found.put((i, None, "not run: not compiled in time"))
            continue
        try:
            calls[i] = prepare(jobs[i])
        except Exception as error:
            found.put((i, None, _described(error)))
    if all_compiled is not None:
        all_compiled.wait()
    for i, call in calls.items():
        with device:
            try:
                found.put((i, call(), ""))
            except Exception as error:
                found.put((i, None, _described(error)))


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
