"""The measurements on a GPU in Markdown."""

from __future__ import annotations

import re
from typing import Any

_MARKS = re.compile(r"(<!-- bench/gpu_device\.py -->\n).*?(<!-- end -->)", re.DOTALL)
QUICK = " philox"  # ends the name of what draws from that stream


def tables(record: dict[str, Any]) -> str:
    return "\n".join([_about(record), "", *_estimators(record), "", *_kernels(record)])


def _about(record: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in record["machine"].items()) + "."


def _estimators(record: dict[str, Any]) -> list[str]:
    """One row for each case, whatever the streams."""
    cases: dict[str, dict[str, Any]] = {}
    for row in record["optax"]:
        cases.setdefault(row["case"], {})[row["library"]] = row
    lines = [
        "| batch x size x samples | optax | perturbk | Philox | goals | MB of temporaries |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case, rows in cases.items():
        first = next(iter(rows.values()))
        ours, quick = (rows.get(f"perturbk{stream}") for stream in ("", QUICK))
        goals = ", ".join(f"{row['goal']:.2g}x" for row in rows.values() if row["goal"])
        lines.append(
            f"| {case} | {first['optax_seconds'] * 1e6:.0f} us | {_faster(ours)} | "
            f"{_faster(quick)} | {goals} | "
            f"{first['optax_temp_bytes'] / 1e6:.1f} -> {first['temp_bytes'] / 1e6:.1f} |"
        )
    return lines


def _faster(row: dict[str, Any] | None) -> str:
    return f"{row['seconds'] * 1e6:.0f} us, {row['ratio']:.2f}x" if row else ""


def _kernels(record: dict[str, Any]) -> list[str]:
    """One row for each kernel, whatever the streams."""
    kernels: dict[str, dict[str, str]] = {}
    for row in record["kernels"]:
        name = row["kernel"].removesuffix(QUICK)
        stream = "Philox" if row["kernel"].endswith(QUICK) else "Threefry"
        kernels.setdefault(name, {})[stream] = f"{row['rate']:.3g} ({row['of ceiling']:.0%})"
    lines = [
        "| kernel: G variates/s (of the projected ceiling) | Threefry | Philox |",
        "|---|---:|---:|",
    ]
    return lines + [
        f"| {name} | {rates.get('Threefry', '')} | {rates.get('Philox', '')} |"
        for name, rates in kernels.items()
    ]


def in_readme(text: str, record: dict[str, Any]) -> str:
    """The README's text with its tables replaced."""
    text, count = _MARKS.subn(lambda m: f"{m[1]}{tables(record)}\n{m[2]}", text)
    if count != 1:
        raise ValueError(f"README.md must have one pair of marks for GPU times, has {count}")
    return text
