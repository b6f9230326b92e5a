"""Times on a device: kernels against the projected ceiling, estimators against optax."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu_report
import jax
from cases import KINDS, Case
from gpu_programs import Program, Size, programs

from perturbk.demo_measure import Times, alternate
from workloads import FUNS, Workload

_COUNTED = Path(__file__).parent / "results" / "gpu_instructions.json"
# Short programs are enqueued so often before one is waited for, so that the launch is not what is
# timed; longer ones, to last so long.
_ENQUEUED, _LONG = 20, 2e-3
GOALS_AT = Size(256, 100, 1000)
_GOALS = {  # times faster than optax, value and gradient
    ("argmax", "perturbk"): 1.2,
    ("argmax", "perturbk philox"): 6.0,
    **{(op, f"perturbk{rng}"): 5.0 for op in ("top_k", "ranking") for rng in ("", " philox")},
}
_QUICK = {op for op, _ in _GOALS}  # timed with the quick stream, too
# What they leave of the time of value and gradient is that of other programs.
_IN_CONTESTS = {("argmax", "samples"), ("top_k_5", "samples"), ("", "score_sum")}
# Of the largest entry: a winner may differ where the logarithms differ in the last bits, and is one
# of the samples. That it is rare is checked by kernel.
_TOLERANCE = 2e-2


@dataclasses.dataclass(frozen=True)
class Counted:
    """A kernel whose instructions are counted, and the ceiling that follows, G variates/s.

    Attributes:
        kernel: as it is shown.
    """

    kernel: str
    implementation: str
    program: Program
    ceiling: float


@dataclasses.dataclass(frozen=True)
class Contest:
    """A workload by optax and by ours, as `cases.py` names them."""

    case: Case
    ours: tuple[str, ...]


def counted(
    names: Sequence[str], size: Size, ranked: Sequence[int], only: str, part: float
) -> list[Counted]:
    """The kernels of these implementations.

    part: the device's SMs and clock of those that the counted ceilings are for, multiplied.
    """
    record = json.loads(_COUNTED.read_text())["kernels"]
    found = []
    for program, name in itertools.product(programs(only, size, ranked), names):
        kernel = program.name if name == "pallas" else f"{name} {program.name}"
        if kernel in record:
            ceiling = record[kernel]["ceiling, G variates/s"] * part
            found.append(Counted(kernel, name, program, ceiling))
    return found


def of_contests(only: str, part: float) -> list[Counted]:
    """The kernels of value and gradient of winners, at the size of the goals."""
    size = dataclasses.replace(GOALS_AT, keys=GOALS_AT.batch)
    return [
        dataclasses.replace(c, kernel=_at(size, c.kernel))
        for c in counted(["pallas"], size, (), only, part)
        if c.program.noise == "gumbel" and c.program.vectors == 1
        if (c.program.op, c.program.primitive) in _IN_CONTESTS
    ]


def _at(size: Size, kernel: str) -> str:
    stream = gpu_report.QUICK if kernel.endswith(gpu_report.QUICK) else ""
    where = f"at {size.batch}x{size.d}x{size.num_samples}"
    return f"{kernel.removesuffix(stream)} {where}{stream}"


def contests(sizes: Sequence[Size], only: str) -> list[Contest]:
    """Every op at every size; its value alone where the goals are set."""
    return [
        Contest(
            Case(Workload(op, size.batch, size.d, size.num_samples), kind),
            ("perturbk", "perturbk philox") if op in _QUICK else ("perturbk",),
        )
        for size, op, kind in itertools.product(sizes, FUNS, KINDS)
        if only in ("", op) and (kind != "value" or size == GOALS_AT)
    ]


def time_kernel(what: Counted, platform: str, seconds: float) -> Callable[[], list[dict[str, Any]]]:
    """Compiles; the call gives the rate."""
    call = what.program.compiled(what.implementation, platform)

    def run() -> list[dict[str, Any]]:
        times = _times({"kernel": call}, seconds)
        rate = what.program.size.variates / times.median("kernel") / 1e9
        return [{"kernel": what.kernel, "rate": rate, "of ceiling": rate / what.ceiling}]

    return run


def time_contest(what: Contest, seconds: float) -> Callable[[], list[dict[str, Any]]]:
    """Compiles; the call compares the results, and gives the ratios of time to optax's."""
    calls = {library: what.case.call(library) for library in ("optax", *what.ours)}
    return lambda: _contest(what.case, calls, seconds)


def _contest(case: Case, calls: dict[str, Callable], seconds: float) -> list[dict[str, Any]]:
    expected = calls["optax"]()
    differences = {
        ours: case.check(calls[ours](), expected, _TOLERANCE)
        for ours in calls
        if "philox" not in ours  # whose numbers are not optax's
    }
    times = _times(calls, seconds)
    size = Size(case.workload.batch, case.workload.d, case.workload.num_samples)
    at_goal = size == GOALS_AT and case.kind == "value and gradient"
    return [
        {
            "case": case.name,
            "library": ours,
            "seconds": times.median(ours),
            "optax_seconds": times.median("optax"),
            "ratio": times.ratio("optax", ours),
            "goal": _GOALS.get((case.workload.op, ours)) if at_goal else None,
            "temp_bytes": case.temp_bytes(ours),
            "optax_temp_bytes": case.temp_bytes("optax"),
            "difference": differences.get(ours),
        }
        for ours in calls
        if ours != "optax"
    ]


def _times(calls: Mapping[str, Callable[[], Any]], seconds: float) -> Times:
    """Seconds per call; 0 for a rehearsal."""
    counts, enqueued = {}, {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        start = time.perf_counter()
        jax.block_until_ready(call())
        count = round(_LONG / (time.perf_counter() - start))
        counts[name] = min(max(count, 1), _ENQUEUED) if seconds else 1
        enqueued[name] = _many(call, counts[name])
    rounds = alternate(enqueued, seconds=seconds, batch_seconds=_LONG).rounds
    return Times({name: [s / counts[name] for s in rounds[name]] for name in calls})


def _many(call: Callable[[], Any], count: int) -> Callable[[], Any]:
    def run():
        for _ in range(count - 1):
            call()
        return call()  # a device's stream is in order: the last is done when all are

    return run
