"""Instructions per noise variate of the GPU kernels, counted in their machine code (sm_90).

The kernels are compiled for an H200 that is not there, and their hot loops counted. The ceiling
is a projection from the chip's issue and pipe rates at its full clock: nothing is run, and no time
is measured.

    python bench/gpu_instructions.py           writes bench/results/gpu_instructions.json
    python bench/gpu_instructions.py --check   compares with that file; 1 if there are more

Needs jax-cuda13-plugin of jax's own version, and triton.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from gpu_aot import compile_for_h200, nvidia_tools, prepare

RECORD = Path(__file__).parent / "results" / "gpu_instructions.json"
TOLERANCE = 0.05  # of another compiler's version
SHAPE = (16, 1000, 1 << 14)  # rows, d, samples: several tiles in every loop

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.a-z]+)\s*(.*?);")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")

# Instructions that a streaming multiprocessor (SM) starts per cycle, by the unit they need.
SMS, CLOCK, ISSUE = 132, 1.98e9, 128
_UNITS = {"ALU": 64, "MUFU": 16, "FMA": 128}
_ALU = {"LOP3", "PLOP3", "SHF", "IADD3", "VIADD", "LEA", "ISETP", "SEL", "PRMT"}
_ALU |= {"FSETP", "FSEL", "FMNMX"}
_FMA = {"FFMA", "FADD", "FMUL", "IMAD"}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A primitive's kernel, and how many variates one turn of its hot loop draws per thread."""

    primitive: str
    noise: str
    op: str = ""
    variates: int = 8

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.op, self.primitive, self.noise)))

    def compile(self) -> None:
        import functools

        import jax
        import jax.numpy as jnp

        from perturbk import implementations

        def shape(*dims, dtype=jnp.float32):
            return jax.ShapeDtypeStruct(dims, dtype)

        batch, d, num_samples = SHAPE
        score = self.primitive.startswith("score")
        rows = (1, 1, batch * d) if score else (1, 1, batch, d)
        operands = [
            shape(1, 2, num_samples, dtype=jnp.uint32),
            shape(*rows),
            shape(*(1,) * len(rows)),
        ]
        if self.primitive.endswith("dot"):
            operands.append(shape(*rows))
        elif self.primitive != "samples":
            operands.append(shape(1, 1, num_samples))
        params = dict(order=1, power=0) if score else dict(op=self.op, inner=1)
        run = functools.partial(implementations.run, self.primitive, "cuda")
        run = functools.partial(run, implementation="pallas", noise=self.noise, **params)
        compile_for_h200(run, *operands)


KERNELS = [
    *(Kernel("samples", noise, "argmax") for noise in ("gumbel", "normal")),
    *(Kernel("op_sum", noise, "argmax") for noise in ("gumbel", "normal")),
    *(Kernel("score_dot", noise) for noise in ("gumbel", "normal")),
    *(Kernel("score_sum", noise) for noise in ("gumbel", "normal")),
]


def _disassembled(path: Path, what: str) -> str:
    tool = nvidia_tools() / "cuobjdump"
    return subprocess.run([tool, what, path], capture_output=True, text=True, check=True).stdout


def hot_loop(sass: str) -> list[str]:
    """Opcodes of the largest loop that holds no other loop."""
    lines = [m.groups() for m in map(_LINE.match, sass.splitlines()) if m]
    code = [(int(at, 16), op, args) for at, op, args in lines]
    loops = []
    for at, op, args in code:
        target = re.search(r"0x([0-9a-f]+)", args)
        if op.startswith("BRA") and target and int(target[1], 16) < at:
            loops.append((int(target[1], 16), at))
    inner = [
        (a, b)
        for a, b in loops
        if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)
    ]
    bodies = [[op for at, op, _ in code if a <= at <= b and op != "NOP"] for a, b in inner]
    return max(bodies, key=len)


def count(kernel: Kernel, kept: Path) -> dict[str, float]:
    """Compiles a kernel; instructions per variate, registers, spills and projected ceiling."""
    for path in kept.iterdir():
        path.unlink()
    kernel.compile()
    for path in kept.iterdir():
        sass = _disassembled(path, "--dump-sass")
        if "perturbk_" in sass:
            break
    else:
        raise RuntimeError(f"no kernel of ours in the program for {kernel.name}")
    resources = _RESOURCES.search(_disassembled(path, "--dump-resource-usage"))
    assert resources, "cuobjdump printed no resource usage"
    ops = collections.Counter(op.partition(".")[0] for op in hot_loop(sass))
    units = {
        "ALU": sum(ops[op] for op in _ALU),
        "FMA": sum(ops[op] for op in _FMA),
        "MUFU": ops["MUFU"],
    }
    cycles = max(ops.total() / ISSUE, *(units[u] / rate for u, rate in _UNITS.items()))
    return {
        "instructions": round(ops.total() / kernel.variates, 1),
        "registers": int(resources[1]),
        "spilled bytes": int(resources[2]),
        "ceiling, G variates/s": round(SMS * CLOCK * kernel.variates / cycles / 1e9),
    }


def faults(found: dict[str, dict[str, float]], recorded: dict[str, dict[str, float]]) -> list[str]:
    """What takes more than recorded, spills, or is not recorded."""
    found_faults = []
    for name, row in found.items():
        old = recorded.get(name, {}).get("instructions")
        if old is None:
            found_faults.append(f"{name} is not recorded")
        elif row["instructions"] > old * (1 + TOLERANCE):
            found_faults.append(f"{name} takes {row['instructions']}, recorded {old}")
        if row["spilled bytes"]:
            found_faults.append(f"{name} spills {row['spilled bytes']} bytes")
    return found_faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = prepare(Path(folder))
        import jax
        import triton

        print(f"compiled for sm_90 by jax {jax.__version__}, ptxas of triton {triton.__version__}")
        found = {}
        for kernel in KERNELS:
            found[kernel.name] = row = count(kernel, kept)
            print(f"{kernel.name:24}", *(f"{k}: {v}" for k, v in row.items()), sep="  ", flush=True)
    if options.check:
        wrong = faults(found, json.loads(RECORD.read_text())["kernels"])
        print("\n".join(wrong) or "no kernel takes more than recorded")
        return 1 if wrong else 0
    record = {
        "what": "instructions per noise variate in the hot loop, sm_90; projected, nothing was run",
        "jax": jax.__version__,
        "triton": triton.__version__,
        "kernels": found,
    }
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
