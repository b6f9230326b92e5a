"""Static cycles of the TPU kernels, from the compiler's schedule; nothing runs on a TPU.

libtpu compiles every kernel, and optax's estimator as XLA compiles it, for a TPU topology on any
machine, and writes the final schedule: bundles, of which a core issues one a cycle. Cycles here are
bundles times the trips of the loops around them. Stalls, DMA waits and the memory are not in them:
they rank programs and show regressions, and are no measured time.

    python bench/tpu_cycles.py                       all chips; writes bench/results/tpu_cycles.json
    python bench/tpu_cycles.py --check               compares ours with the recorded; 1 if slower
    python bench/tpu_cycles.py --chip v5e --only argmax
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # what is counted is the checkout
from tpu_aot import TOPOLOGIES, compile_for, prepare
from tpu_cases import kernels, programs
from tpu_schedule import program_cycles

RECORD = Path(__file__).parent / "results" / "tpu_cycles.json"
UNIT = "static cycles from the compiler's schedule, per 1024 noise variates"
# A schedule is deterministic for one libtpu; this leaves room for a change of a few bundles.
TOLERANCE = 0.03


def measure(chip: str, dump: str, only: str, ours: bool) -> dict[str, float]:
    """name -> static cycles per 1024 variates, printed as they come; of `ours` only, or of all."""
    found = {}
    for case in (*kernels(), *programs()):
        is_optax = "optax" in case.name
        if only not in case.name or (ours and is_optax):
            continue
        f, shapes = case.make()
        program_cycles(dump)
        compile_for(chip, f, *shapes)
        programs_of = program_cycles(dump)
        fused = not is_optax and "by xla" not in case.name
        if fused and not any("perturbk" in name for name in programs_of):
            raise RuntimeError(f"{case.name}: the compiler dumped no kernel of ours")
        cycles = sum(programs_of.values())
        found[case.name] = round(cycles * 1024 / case.variates, 1)
        print(f"{chip:4} {found[case.name]:8.1f}  {case.name}", flush=True)
    return found


def compare(found: dict[str, dict[str, float]], recorded: dict[str, dict[str, float]]) -> list[str]:
    """What is slower than recorded, or not recorded."""
    faults = []
    for chip, rows in found.items():
        for name, cycles in rows.items():
            old = recorded.get(chip, {}).get(name)
            if old is None:
                faults.append(f"{chip}: {name} is not recorded")
            elif cycles > old * (1 + TOLERANCE):
                faults.append(f"{chip}: {name} takes {cycles}, recorded {old}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chip", action="append", choices=TOPOLOGIES, help="default: all")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args()
    if not options.chip or len(options.chip) > 1:
        # Each in a process of its own: a kernel compiled for one chip may not be dumped for others.
        command = [sys.executable, __file__, "--only", options.only]
        command += ["--check"] * options.check
        chips = options.chip or TOPOLOGIES
        return max(subprocess.run([*command, "--chip", chip]).returncode for chip in chips)
    with tempfile.TemporaryDirectory() as dump:
        prepare(dump)
        import jax
        import libtpu

        print(f"{UNIT}; jax {jax.__version__}, libtpu {libtpu.__version__}")
        found = {chip: measure(chip, dump, options.only, options.check) for chip in options.chip}
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"cycles": {}}
    if options.check:
        if record.get("libtpu") != libtpu.__version__:
            print(f"note: recorded with libtpu {record.get('libtpu')}")
        faults = compare(found, record["cycles"])
        print("\n".join(faults) or "nothing is slower than recorded")
        return 1 if faults else 0
    for chip, rows in found.items():
        record["cycles"].setdefault(chip, {}).update(rows)
    record |= {"unit": UNIT, "jax": jax.__version__, "libtpu": libtpu.__version__}
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
