"""The measurements on a GPU in Markdown."""

from __future__ import annotations

import re
from typing import Any

_MARKS = re.compile(r"(<!-- bench/gpu_device\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def tables(record: dict[str, Any]) -> str:
    lines = [
        ", ".join(f"{k} {v}" for k, v in record["machine"].items()) + ".",
        "",
        "| estimator | library | time | times faster than optax | goal | MB | optax's |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in record["optax"]:
        lines.append(
            f"| {r['case']} | {r['library']} | {r['seconds'] * 1e3:.3g} ms | {r['ratio']:.2f}x | "
            f"{r['goal'] or ''} | {r['temp_bytes'] / 1e6:.1f} | {r['optax_temp_bytes'] / 1e6:.1f} |"
        )
    lines += ["", "| kernel | G variates/s | of the projected ceiling |", "|---|---:|---:|"]
    for r in record["kernels"]:
        lines.append(f"| {r['kernel']} | {r['rate']:.3g} | {r['of ceiling']:.0%} |")
    return "\n".join(lines)


def in_readme(text: str, record: dict[str, Any]) -> str:
    """The README's text with its tables replaced."""
    text, count = _MARKS.subn(lambda m: f"{m[1]}{tables(record)}\n{m[2]}", text)
    if count != 1:
        raise ValueError(f"README.md must have one pair of marks for GPU times, has {count}")
    return text
