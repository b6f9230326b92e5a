"""Times on a device: kernels against the projected ceiling, estimators against optax."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cases import KINDS, Case
from gpu_programs import Program, Size, compiled, programs

from perturbk.demo_measure import alternate
from workloads import Workload

_COUNTED = Path(__file__).parent / "results" / "gpu_instructions.json"
_ENQUEUED = 20  # calls before one is waited for, so that the launch is not what is timed
_OPS = ("argmax", "top_k", "ranking", "sort")
_OURS = ("perturbk", "perturbk philox")
GOALS_AT = Size(256, 100, 1000)
_GOALS = {  # times faster than optax, value and gradient
    ("argmax", "perturbk"): 1.2,
    ("argmax", "perturbk philox"): 6.0,
    **{(op, ours): 5.0 for op in ("top_k", "ranking") for ours in _OURS},
}


def _many(call: Callable[[], Any], count: int) -> Callable[[], Any]:
    def run():
        for _ in range(count - 1):
            call()
        return call()  # a device's stream is in order: the last is done when all are

    return run


def against_ceiling(
    names: Sequence[str],
    platform: str,
    size: Size,
    ranked: Sequence[int],
    seconds: float,
    only: str,
    part: float,
) -> list[dict[str, Any]]:
    """Rate of each kernel whose instructions are counted, in variates per second.

    part: the device's SMs and clock of those that the counted ceilings are for, multiplied.
    """
    counted = json.loads(_COUNTED.read_text())["kernels"]
    pairs = ((name, program) for program in programs(only, size, ranked) for name in names)
    wanted = {pair: known for pair in pairs if (known := _known(*pair)) in counted}
    calls = compiled(list(wanted), platform)
    found, enqueued = [], _ENQUEUED if seconds else 1
    for (name, program), known in wanted.items():
        call = calls[name, program]
        if isinstance(call, NotImplementedError):
            continue  # said by the checks
        times = alternate({"kernel": _many(call, enqueued)}, seconds=seconds)
        rate = program.size.variates * enqueued / times.median("kernel") / 1e9
        ceiling = counted[known]["ceiling, G variates/s"] * part
        found.append({"kernel": known, "rate": rate, "of ceiling": rate / ceiling})
    return found


def _known(name: str, program: Program) -> str:
    """The name of a kernel among those whose instructions are counted."""
    return program.name if name == "pallas" else f"{name} {program.name}"


def against_optax(sizes: Sequence[Size], seconds: float, only: str) -> list[dict[str, Any]]:
    """Ratios of time to optax's, each after a comparison of the results."""
    found, enqueued = [], _ENQUEUED if seconds else 1
    for size, op in itertools.product(sizes, (op for op in _OPS if only in ("", op))):
        for kind in KINDS:
            case = Case(Workload(op, size.batch, size.d, size.num_samples), kind)
            calls = {name: case.call(name) for name in ("optax", *_OURS)}
            difference = case.check(calls["perturbk"](), calls["optax"]())
            times = alternate(
                {name: _many(call, enqueued) for name, call in calls.items()}, seconds=seconds
            )
            at_goal = size == GOALS_AT and kind == "value and gradient"
            for ours in _OURS:
                found.append(
                    {
                        "case": case.name,
                        "library": ours,
                        "seconds": times.median(ours) / enqueued,
                        "optax_seconds": times.median("optax") / enqueued,
                        "ratio": times.ratio("optax", ours),
                        "goal": _GOALS[op, ours] if at_goal else None,
                        "temp_bytes": case.temp_bytes(ours),
                        "optax_temp_bytes": case.temp_bytes("optax"),
                        "difference": difference,  # of the stream that optax draws from
                    }
                )
    return found
