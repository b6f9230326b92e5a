"""The machine code of a GPU's kernel: its hot loops, and how fast a device could run them.

Projected from issue and pipe rates; nothing is run.
"""

from __future__ import annotations

import collections
import re
import subprocess
from pathlib import Path

from gpu_aot import nvidia_tools

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.a-z]+)\s*(.*?);")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")

# Instructions that a streaming multiprocessor (SM) starts per cycle, by the unit they need.
SMS, CLOCK, ISSUE = 132, 1.98e9, 128
_UNITS = {"ALU": 64, "MUFU": 16, "FMA": 128, "LSU": 32}
_ALU = {"LOP3", "PLOP3", "SHF", "IADD3", "VIADD", "LEA", "ISETP", "SEL", "PRMT"}
_ALU |= {"FSETP", "FSEL", "FMNMX", "VIMNMX", "I2FP"}
_FMA = {"FFMA", "FADD", "FMUL", "IMAD"}
_LSU = {"LDS", "STS", "LDG", "STG", "LDL", "STL", "SHFL"}


def _dumped(path: Path, what: str) -> str:
    tool = nvidia_tools() / "cuobjdump"
    return subprocess.run([tool, what, path], capture_output=True, text=True, check=True).stdout


def disassembled(path: Path) -> str:
    """The instructions of a file of machine code."""
    return _dumped(path, "--dump-sass")


def resources(path: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, where what is spilled lies."""
    found = _RESOURCES.search(_dumped(path, "--dump-resource-usage"))
    assert found, "cuobjdump printed no resource usage"
    return int(found[1]), int(found[2])


def cycles(ops: list[str]) -> float:
    """Cycles in which an SM starts these of a thread, by the unit that takes longest."""
    kinds = collections.Counter(op.partition(".")[0] for op in ops)
    units = {
        "ALU": sum(kinds[op] for op in _ALU),
        "FMA": sum(kinds[op] for op in _FMA),
        "MUFU": kinds["MUFU"],
        "LSU": sum(kinds[op] for op in _LSU) + 3 * sum(op.endswith(".128") for op in ops),
    }
    return max(kinds.total() / ISSUE, *(units[u] / rate for u, rate in _UNITS.items()))


Code = list[tuple[int, str]]  # addresses and opcodes


def parsed(sass: str) -> tuple[Code, list[tuple[int, int]]]:
    """The instructions of a kernel, and (from, to) of its branches."""
    lines = [m.groups() for m in map(_LINE.match, sass.splitlines()) if m]
    code = [(int(at, 16), op, args) for at, op, args in lines]
    targets = [(at, re.search(r"0x([0-9a-f]+)", args)) for at, op, args in code if op[:3] == "BRA"]
    branches = [(at, int(to[1], 16)) for at, to in targets if to]
    return [(at, op) for at, op, _ in code if op != "NOP"], branches


def _within(code: Code, first: int, last: int) -> list[str]:
    return [op for at, op in code if first <= at <= last]


def _innermost(branches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(first, last) of the loops without a loop inside."""
    loops = [(to, at) for at, to in branches if to < at]
    return [
        (a, b)
        for a, b in loops
        if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)
    ]


def first_loop(sass: str) -> list[str]:
    """Opcodes of the first loop without a loop inside."""
    code, branches = parsed(sass)
    return _within(code, *_innermost(branches)[0])


def hot_loops(sass: str, count: int, behind: int) -> list[str]:
    """Opcodes of the `count` largest loops without a loop inside, but for `behind` that follow."""
    code, branches = parsed(sass)
    bodies = [_within(code, *loop) for loop in _innermost(branches)]
    largest = sorted(bodies, key=len)[-count - behind :]
    in_order = [body for body in bodies if body in largest]
    return [op for body in in_order[:count] for op in body]


def _largest(branches: list[tuple[int, int]]) -> tuple[int, int]:
    """(first, last) of the longest loop."""
    return max(((to, at) for at, to in branches if to < at), key=lambda loop: loop[1] - loop[0])


def one_row(sass: str, turns: int, pairs: int, *, looped: bool) -> list[str]:
    """Opcodes that a sample's row goes through in the loop over samples, the largest.

    Or in all of a program that has none. The first inner loop draws the row, if that takes several
    turns. Each other loop is for rows where the order of the words is in doubt, and others skip it
    by a branch, with what is around it; the first takes a turn for each of so many pairs.
    """
    code, branches = parsed(sass)
    first, last = _largest(branches) if looped else (code[0][0], code[-1][0])
    inner = [loop for loop in _innermost(branches) if first < loop[0] and loop[1] < last]
    drawing, rare = (inner[:1], inner[1:]) if turns > 1 else ([], inner)
    skipped = [
        (at, to)
        for at, to in branches
        if first <= at and to <= last and any(at < a and b < to for a, b in rare)
    ]
    assert all(any(at < a and b < to for at, to in skipped) for a, b in rare), "no branch skips it"
    ops = collections.Counter(
        op for at, op in code if first <= at <= last and not any(a < at < b for a, b in skipped)
    )
    repeated = [(loop, turns - 1) for loop in drawing] + [(loop, pairs) for loop in rare[:1]]
    for loop, times in repeated:
        for op in _within(code, *loop):
            ops[op] += times
    return list(ops.elements())
