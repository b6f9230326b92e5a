"""Static cycles of the TPU kernels, from the compiler's schedule; nothing runs on a TPU.

libtpu compiles every kernel, and optax's estimator as XLA compiles it, for a TPU topology on any
machine, and writes the final schedule: bundles, of which a core issues one a cycle. Cycles here are
bundles times the trips of the loops around them. Stalls, DMA waits and the memory are not in them:
they rank programs and show regressions, and are no measured time.

    python bench/tpu_cycles.py                       all chips; writes bench/results/tpu_cycles.json
    python bench/tpu_cycles.py --check               compares with the recorded file; 1 if slower
    python bench/tpu_cycles.py --chip v5e --only argmax
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import glob
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from tpu_aot import TOPOLOGIES, compile_for, prepare

RECORD = Path(__file__).parent / "results" / "tpu_cycles.json"
UNIT = "static cycles from the compiler's schedule, per 1024 noise variates"
# A schedule is deterministic for one libtpu; this leaves room for a change of a few bundles.
TOLERANCE = 0.03

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


@dataclasses.dataclass(frozen=True)
class Case:
    """One program and the noise variates that it needs.

    Attributes:
        make: () -> (function, shapes of its arguments); called when jax may be imported.
        variates: what the estimator needs, padding not included.
    """

    name: str
    make: Callable[[], tuple[Callable, tuple]]
    variates: int


def _primitive(name: str, batch: int, d: int, num_samples: int, **params):
    """Kernel `name` as it is lowered for a TPU, on one leaf of shape [batch, d]."""
    import jax
    import jax.numpy as jnp

    from perturbk import implementations

    def shape(*dims, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(dims, dtype)

    score = name.startswith("score")
    rows = (1, 1, batch * d) if score else (1, 1, batch, d)
    sigma = shape(1, 1, 1) if score else shape(1, 1, 1, 1)
    operands = [shape(1, 2, num_samples, dtype=jnp.uint32), shape(*rows), sigma]
    if name in ("op_dot", "score_dot"):
        operands.append(shape(*rows))
    elif name != "samples":
        operands.append(shape(1, 1, num_samples))
    params.setdefault("implementation", "pallas")
    return functools.partial(implementations.run, name, "tpu", **params), tuple(operands)


def _estimator(library: str, op: str, what: str, batch: int, d: int, num_samples: int):
    """The whole program of a call: optax's, or ours by implementation."""
    import jax
    import jax.numpy as jnp
    from optax import perturbations

    import perturbk

    funs = {
        "argmax": lambda x: jax.nn.one_hot(jnp.argmax(x, -1), d),
        "ranking": lambda x: jnp.argsort(jnp.argsort(x, axis=-1), axis=-1),
    }
    if library == "optax":
        f = perturbations.make_perturbed_fun(funs[op], num_samples, 0.5)
    else:
        f = perturbk.make_perturbed_fun(funs[op], num_samples, 0.5, implementation=library)

    def value(key, x):
        return f(key, x)

    def value_and_grad(key, x):
        return jax.value_and_grad(lambda x: jnp.sum(f(key, x) ** 2))(x)

    shapes = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((batch, d), jnp.float32)
    return {"value": value, "value and gradient": value_and_grad}[what], shapes


_WORKLOAD = (128, 1000, 1000)  # rows, coordinates, samples
_RANKED = (6, 16, 32, 64, 100, 256, 1024)


def _case(label: str, make: Callable, *shape: int, **params) -> Case:
    name = f"{label}, {' x '.join(map(str, shape))}"
    return Case(name, functools.partial(make, *shape, **params), math.prod(shape))


def kernels() -> Iterator[Case]:
    """Every kernel as a TPU gets it: whole primitives, with what XLA does around the kernel."""

    def kernel(primitive: str, noise: str, *shape: int, op: str = "", **params) -> Case:
        if op:
            params |= dict(op=op, inner=1)
        make = functools.partial(_primitive, primitive)
        label = f"{op} {primitive} {noise}".strip()
        if params.get("order", 1) > 1:
            label += " h_{order} z^{power}".format(**params)
        return _case(label, make, *shape, noise=noise, **params)

    for noise in ("gumbel", "normal"):
        for shape in (_WORKLOAD, (128, 100, 1000), (1, 100000, 200)):
            yield kernel("samples", noise, *shape, op="argmax")
        yield kernel("op_sum", noise, *_WORKLOAD, op="argmax")
        yield kernel("op_dot", noise, *_WORKLOAD, op="argmax")
        yield kernel("score_dot", noise, *_WORKLOAD, order=1, power=0)
        yield kernel("score_sum", noise, *_WORKLOAD, order=1, power=0)
        yield kernel("score_sum", noise, *_WORKLOAD, order=2, power=1)
        yield kernel("op_sum", noise, 128, 100, 1000, op="ranking")
    for d in _RANKED:
        if d != 100:
            yield kernel("op_sum", "gumbel", 128, d, 1000, op="ranking")
    yield kernel("samples", "gumbel", 128, 100, 1000, op="ranking")
    yield kernel("op_dot", "gumbel", 128, 100, 1000, op="ranking")
    for op in ("ranking_descending", "ranking_nan_first"):
        yield kernel("op_sum", "gumbel", 128, 16, 1000, op=op)


def programs() -> Iterator[Case]:
    """Whole estimators: XLA's program for optax's, and ours."""
    for op, *shape in (
        ("argmax", *_WORKLOAD),
        ("argmax", 128, 100, 1000),
        ("ranking", 128, 100, 1000),
        ("ranking", 128, 1024, 1000),
    ):
        for what in ("value", "value and gradient"):
            for library in ("optax", "pallas"):
                make = functools.partial(_estimator, library, op, what)
                yield _case(f"{op} {what} by {library}", make, *shape)


def measure(chip: str, dump: str, only: str) -> dict[str, float]:
    """name -> static cycles per 1024 variates, printed as they come."""
    found = {}
    for case in (*kernels(), *programs()):
        if only not in case.name:
            continue
        f, shapes = case.make()
        program_cycles(dump)
        compile_for(chip, f, *shapes)
        programs_of = program_cycles(dump)
        if "optax" not in case.name and not any("perturbk" in name for name in programs_of):
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
        found = {chip: measure(chip, dump, options.only) for chip in options.chip}
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
