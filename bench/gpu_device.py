"""Correctness, then times, of every kernel on a GPU, against optax and the projected ceiling.

    python bench/gpu_device.py             checks, measures (minutes), records
                                           bench/results/gpu_device.json, and prints the tables
    python bench/gpu_device.py --checks-only, --times-only  one of the two; times are recorded
    python bench/gpu_device.py --quick     with shorter loops, not recorded
    python bench/gpu_device.py --readme    and puts the tables into README.md
    python bench/gpu_device.py --sanitize  runs each kernel once, small, under compute-sanitizer
    python bench/gpu_device.py --platform cpu  rehearses all of it on small shapes, interpreted; its
                                           times mean nothing, and nothing is recorded

Programs are compiled side by side, in processes of their own, and run one at a time. Nothing is
recorded if a check fails, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "tests")]

# Processes share the device, and give back what they do not need.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import gpu_checks  # noqa: E402
import gpu_clocks  # noqa: E402
import gpu_pool  # noqa: E402
import gpu_report  # noqa: E402
import gpu_times  # noqa: E402
import jax  # noqa: E402
from gpu_code import CLOCK, SMS  # noqa: E402
from gpu_programs import Size, implementations_here  # noqa: E402

from perturbk.demo_measure import machine  # noqa: E402

RECORD = ROOT / "bench" / "results" / "gpu_device.json"
# Rankings are checked and timed at lengths of their own.
_CHECKED, _CHECKED_RANKED = Size(3, 100, 300), (16, 100, 200)
_REHEARSED, _REHEARSED_RANKED = Size(2, 12, 40), (12,)
# Rows and numbers of ranks as in gpu_instructions.py, a billion variates each: milliseconds.
_TIMED, _TIMED_RANKED = Size(256, 1000, 4096), (16, 64, 100, 128, 256, 1024)
_AGAINST_OPTAX = (
    *(Size(*size) for size in ((1, 5, 100), (1, 1000, 1000), (1, 100_000, 200))),
    *(Size(*size) for size in ((16, 100, 1000), (64, 1000, 200), (16, 10_000, 200))),
    Size(256, 1000, 20),
    gpu_times.GOALS_AT,
)
_QUERY = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"


def platform_of(wanted: str) -> str:
    """The platform of this process's device.

    Raises:
        SystemExit: it is not the wanted one.
    """
    devices = jax.devices()
    found = "cuda" if devices[0].platform == "gpu" else devices[0].platform
    if found != wanted:
        raise SystemExit(
            f"bench/gpu_device.py measures on {wanted!r}, and jax found {devices}. Install "
            "jax[cuda13] on a machine with a GPU, or rehearse with --platform cpu."
        )
    return found


def nvidia_smi() -> dict[str, str]:
    """Driver and clocks, where the tool is there to tell."""
    if not shutil.which("nvidia-smi"):
        return {"nvidia-smi": "not installed"}
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    first = out.splitlines()[0].split(", ")
    return dict(zip(_QUERY.split(","), first, strict=True))


def of_ceiling(about: dict[str, Any]) -> float:
    """SMs times clock of this device, of those that the ceilings are counted for: an H200's.

    One where the device does not tell.
    """
    cores = getattr(jax.devices()[0], "core_count", None)
    clock = re.match(r"(\d+) MHz", about.get("clocks.max.sm", ""))
    return cores / SMS * float(clock[1]) * 1e6 / CLOCK if cores and clock else 1.0


def sanitize(only: str) -> int:
    """compute-sanitizer's exit status for the checks on a small shape."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise SystemExit("compute-sanitizer is not on PATH: it comes with the CUDA toolkit")
    here = [sys.executable, str(Path(__file__).resolve()), "--checks-only", "--small"]
    # In one process: the tool did not survive that others are started.
    options = ["--workers", "1", f"--only={only}"]
    return subprocess.run([tool, "--error-exitcode", "1", *here, *options]).returncode


def _prepare(job: Any) -> Any:
    """Compiles; the call that is returned finds what is wrong, or rows of a table."""
    what, names, platform, seconds = job
    if isinstance(what, gpu_checks.Check):
        return gpu_checks.check(what, names, platform)
    if isinstance(what, gpu_times.Counted):
        return gpu_times.time_kernel(what, platform, seconds)
    return gpu_times.time_contest(what, seconds)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--platform", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="short loops, not recorded")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    parser.add_argument("--sanitize", action="store_true", help="compute-sanitizer, and no times")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--checks-only", action="store_true", help="no times")
    parts.add_argument("--times-only", action="store_true", help="for a device that was checked")
    parser.add_argument("--small", action="store_true", help="check on a small shape")
    parser.add_argument("--only", default="", metavar="OP", help="one op, not recorded")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes that compile"
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), metavar="S", help="most to compile"
    )
    options = parser.parse_args(arguments)
    rehearsal = options.platform == "cpu"
    if options.readme and (
        options.only or options.quick or rehearsal or options.checks_only or options.sanitize
    ):
        parser.error("--readme shows a whole measurement on a GPU, and goes with no other option")
    if options.sanitize:
        return sanitize(options.only)

    platform = platform_of(options.platform)
    small = rehearsal or options.small
    names = implementations_here(platform)
    about = {
        "date": datetime.date.today().isoformat(),
        **machine(),
        **({} if rehearsal else nvidia_smi()),
        "implementations": ", ".join(names),
    }
    print(json.dumps(about, indent=1), flush=True)
    checked = (_REHEARSED, _REHEARSED_RANKED) if small else (_CHECKED, _CHECKED_RANKED)
    wanted: list[Any] = []
    if not options.times_only:
        wanted += gpu_checks.checks(*checked, options.only)
    if not options.checks_only:
        timed = (_REHEARSED, _REHEARSED_RANKED) if rehearsal else (_TIMED, _TIMED_RANKED)
        about["part of the counted ceilings"] = part = round(of_ceiling(about), 3)
        wanted += gpu_times.counted(names, *timed, options.only, part)
        if not rehearsal:
            wanted += gpu_times.of_contests(options.only, part)
        sizes = (_REHEARSED,) if rehearsal else _AGAINST_OPTAX
        wanted += gpu_times.contests(sizes, options.only)

    seconds = 0.0 if rehearsal else 0.05 if options.quick else 0.3
    random.Random(0).shuffle(wanted)  # so that what takes long is spread over the processes
    jobs = [(what, names, platform, seconds) for what in wanted]
    faults, rows = [], {}
    with gpu_clocks.Clocks() as clocks:
        for i, found, fault in gpu_pool.results(_prepare, jobs, options.workers, options.seconds):
            what = wanted[i]
            is_check = isinstance(what, gpu_checks.Check)
            new = [f"{what}: {fault}"] if fault else found if is_check else []
            faults += new
            print("\n".join(f"WRONG {line}" for line in new), end="\n" * bool(new), flush=True)
            if not fault and not is_check:
                rows[what] = found
                print("\n".join(map(json.dumps, found)), flush=True)
        if not rehearsal:
            about |= clocks.found()
    print(f"{len(jobs)} jobs, {len(faults)} faults", flush=True)
    if options.checks_only:
        return 1 if faults else 0

    record = {
        "machine": about,
        "kernels": _rows(rows, gpu_times.Counted, "kernel"),
        "optax": _rows(rows, gpu_times.Contest, "case"),
    }
    if rehearsal:
        print("A rehearsal on a CPU: the times below mean nothing.")
    elif not (options.quick or options.only or faults):
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(gpu_report.tables(record))
    if options.readme and not faults:
        readme = ROOT / "README.md"
        readme.write_text(gpu_report.in_readme(readme.read_text("utf-8"), record), "utf-8")
    return 1 if faults else 0


def _rows(rows: dict[Any, list], kind: type, name: str) -> list[dict[str, Any]]:
    """Those of one kind, by name."""
    found = [row for what, of_it in rows.items() if isinstance(what, kind) for row in of_it]
    return sorted(found, key=lambda row: row[name])


if __name__ == "__main__":
    sys.exit(main())
