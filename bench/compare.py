"""The README's table: perturbk against optax, both under jit, in one process and in turn.

    python bench/compare.py            measures (minutes), records bench/results/<platform>.json,
                                       and prints the table
    python bench/compare.py --readme   and puts it into README.md
    python bench/compare.py --recorded prints the recorded table, or with --readme puts it there

Every result is first compared with optax's for the same key. The exit status is 1 if perturbk is
slower than optax anywhere, by more than the noise of a measurement.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # what is measured is the checkout

import jax  # noqa: E402
from cases import KINDS, Case, cases  # noqa: E402

from perturbk.demo_measure import alternate, machine  # noqa: E402

_NOISE = 0.05  # of a median of ratios, on a machine that does something else besides
_MARKS = re.compile(r"(<!-- bench/compare\.py -->\n).*?(<!-- end -->)", re.DOTALL)
_NAMES = {"top_k": "top-5", "general": "`x > mean(x)`"}  # the others are as their ops

Record = dict[str, Any]


def measured(case: Case, seconds: float) -> Record:
    """Times, memory, and the difference of the results, of one case."""
    calls = {library: case.call(library) for library in ("perturbk", "optax")}
    difference = case.check(calls["perturbk"](), calls["optax"]())
    times = alternate(calls, seconds=seconds)
    w = case.workload
    return {
        "op": w.op,
        "batch": w.batch,
        "d": w.d,
        "num_samples": w.num_samples,
        "sigma": w.sigma,
        "batching": w.batching,
        "noise": w.noise,
        "kind": case.kind,
        "perturbk_seconds": times.median("perturbk"),
        "optax_seconds": times.median("optax"),
        "ratio": times.ratio("optax", "perturbk"),
        "rounds": len(times.rounds["optax"]),
        "perturbk_temp_bytes": case.temp_bytes("perturbk"),
        "optax_temp_bytes": case.temp_bytes("optax"),
        "difference_from_optax": difference,
    }


def table(about: dict[str, str], records: Sequence[Record]) -> str:
    """The records in Markdown; a row for each workload."""
    lines = [
        f"{about['machine']}; Python {about['python']}, jax {about['jax']}, optax "
        f"{about['optax']}. Time of one call under `jit`, and how many times faster than optax; "
        "temporary memory of value and gradient, and optax's.",
        "",
        "| `fun` | x, samples | value | value and gradient | memory | optax's |",
        "|---|---|---:|---:|---:|---:|",
    ]
    value_kind, grad_kind = KINDS
    grads = [r for r in records if r["kind"] == grad_kind]
    for value, grad in zip((r for r in records if r["kind"] == value_kind), grads, strict=True):
        assert all(value[k] == grad[k] for k in ("op", "batch", "d", "batching", "noise"))
        shape = [value["d"]] if value["batch"] == 1 else [value["batch"], value["d"]]
        joint = ", one key" if value["batching"] == "call" else ""
        noise = "" if value["noise"] == "Gumbel" else f", {value['noise']} noise"
        cells = [
            _NAMES.get(value["op"], value["op"]) + noise,
            f"{shape}, {value['num_samples']}{joint}",
            *(f"{_time(r['perturbk_seconds'])}, **{r['ratio']:.1f}x**" for r in (value, grad)),
            *(_memory(grad[f"{library}_temp_bytes"]) for library in ("perturbk", "optax")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def slower(records: Sequence[Record]) -> list[str]:
    """The cases in which perturbk is slower than optax, beyond noise."""
    return [
        f"slower than optax: {r['op']}, {r['batch']} x {r['d']}, {r['num_samples']} samples, "
        f"{r['batching']}, {r['noise']}, {r['kind']}: {r['ratio']:.2f}x"
        for r in records
        if r["ratio"] < 1 - _NOISE
    ]


def in_readme(text: str, table: str) -> str:
    """The README's text with its table replaced."""
    text, count = _MARKS.subn(lambda marks: f"{marks[1]}{table}\n{marks[2]}", text)
    if count != 1:
        raise ValueError(f"README.md must have one pair of marks for the table, has {count}")
    return text


def _time(seconds: float) -> str:
    units = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
    unit, scale = next((u for u in units if seconds * u[1] >= 1), units[-1])
    return f"{seconds * scale:.3g} {unit}"


def _memory(size: int) -> str:
    unit, scale = ("MB", 1e6) if size >= 1e6 else ("kB", 1e3)
    return f"{size / scale:.{1 if size < 10 * scale else 0}f} {unit}"


def results() -> Path:
    """Where measurements on this platform are recorded."""
    return ROOT / "bench" / "results" / f"{jax.devices()[0].platform}.json"


def measure_all(only: str, seconds: float) -> tuple[dict[str, str], list[Record]]:
    """(machine, records) of the cases whose name has `only`; progress goes to stderr."""
    records = []
    for case in cases():
        if only in case.name:
            print(case.name, end=" ", file=sys.stderr, flush=True)
            records.append(measured(case, seconds))
            print(f"{records[-1]['ratio']:.2f}x", file=sys.stderr)
    return machine(), records


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--recorded", action="store_true", help="measure nothing")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="workloads whose name has this; not recorded"
    )
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="about how long to time each case (3)"
    )
    options = parser.parse_args()
    if options.only and (options.readme or options.recorded):
        parser.error("--only measures a part of the table, and goes with --seconds alone")

    if options.recorded:
        found = json.loads(results().read_text())
        about, records = found["machine"], found["cases"]
    else:
        about, records = measure_all(options.only, options.seconds)
        if not records:
            parser.error(f"no workload has {options.only!r} in its name")
        if not options.only:
            results().parent.mkdir(exist_ok=True)
            found = {"machine": about, "cases": records}
            results().write_text(json.dumps(found, indent=1) + "\n")
    print(table(about, records))
    if options.readme:
        readme = ROOT / "README.md"
        text = in_readme(readme.read_text(encoding="utf-8"), table(about, records))
        readme.write_text(text, encoding="utf-8")
    complaints = slower(records)
    print("\n".join(complaints), file=sys.stderr)
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
