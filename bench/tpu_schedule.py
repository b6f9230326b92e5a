"""Reads the final schedules that libtpu dumps: how many cycles a core takes to issue a program."""

from __future__ import annotations

import glob
import math
import os
import re
from pathlib import Path

_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(\w\w)?\s*:\s*((?:>\s*)*)\{(.*)")
_TRIPS = re.compile(r"= scmp\.ge\.s32\.totalorder %\S+, (\d+) [^;]*/\* loop exit test \*/")


def schedule_cycles(path: str) -> int:
    """Bundles of one scheduled program, each times the trips of the loops around it.

    A loop begins at a bundle marked LB and lasts as long as its depth does. Its trips are the
    constant of its exit test; a loop without one (a search, a ragged end) counts once. The
    outermost loop is the grid, pipelined with its copies: two of its trips only fill and drain it.
    """
    bundles = []
    for line in Path(path).read_text().splitlines():
        if match := _BUNDLE.match(line):
            mark, depth, ops = match.groups()
            trips = _TRIPS.search(ops)
            bundles.append((mark, depth.count(">"), int(trips[1]) if trips else None))
    begins = [i for i, (mark, _, _) in enumerate(bundles) if mark == "LB"]
    ends = {}
    for i in begins:
        depth = bundles[i][1]
        stop = next((j for j in begins if j > i and bundles[j][1] <= depth), len(bundles))
        ends[i] = max(j for j in range(i, stop) if bundles[j][1] >= depth)
    around = [[i for i in begins if i <= j <= ends[i]] for j in range(len(bundles))]
    trips = dict.fromkeys(begins, 1)
    for loops, (_, _, exit_at) in zip(around, bundles, strict=True):
        if loops and exit_at:
            grid = len(loops) == 1
            trips[loops[-1]] = max(exit_at - 2, 1) if grid else exit_at
    return sum(math.prod(trips[i] for i in loops) for loops in around)


def program_cycles(dump: str) -> dict[str, int]:
    """Cycles of each scheduled program in the dump folder, by name; the folder is emptied."""
    cycles = {}
    for path in sorted(glob.glob(f"{dump}/*-final_bundles.txt")):
        name = re.sub(r"^\d+-|-\d+-final_bundles\.txt$", "", os.path.basename(path))
        if "schedule-analysis" not in name and not name.startswith(("TLP", "<late")):
            cycles[name] = schedule_cycles(path)
    for path in glob.glob(f"{dump}/*"):
        os.remove(path)
    return cycles
