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
import dataclasses
import functools
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # what is counted is the checkout
import triton_aot
from gpu_aot import compile_for_h200, prepare
from gpu_code import (
    CLOCK,
    SMS,
    cycles,
    disassembled,
    first_loop,
    hot_loops,
    one_row,
    resources,
)

RECORD = Path(__file__).parent / "results" / "gpu_instructions.json"
TOLERANCE = 0.05  # of another compiler's version
SPILLS = 1 / 100  # accesses to spilled bytes for an instruction
SHAPE = (16, 1000, 1 << 14)  # rows, d, samples: several tiles in every loop


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A primitive's kernel.

    Attributes:
        variates: how many one turn of its hot loop draws per thread.
        loops: loops that each variate goes through, one after the other.
        behind: loops behind these in the code, as large or larger, that few variates go through.
        race: whether the hot loop is the first of those without a loop inside.
        turns: of the loop that draws a row, if that is what is counted; 1 if there is none. 0 if a
            row is not.
        looped: whether it does so in a loop over samples.
        pairs: of a row whose words share a level, most often so many.
        vectors: that see the same noise, as those of a Jacobian do.
        d: coordinates of a row.
    """

    primitive: str
    noise: str
    op: str = ""
    variates: int = 8
    implementation: str = "pallas"
    rng: str = "jax"
    loops: int = 1
    behind: int = 0
    race: bool = False
    turns: int = 0
    looped: bool = True
    pairs: int = 0
    vectors: int = 1
    d: int = SHAPE[1]

    @property
    def name(self) -> str:
        parts = [self.op, self.primitive, self.noise]
        if self.d != SHAPE[1]:
            parts.insert(1, f"of {self.d}")
        if self.vectors > 1:
            parts.insert(2, f"of {self.vectors} vectors")
        if self.implementation != "pallas":
            parts.insert(0, self.implementation)
        if self.rng != "jax":
            parts.append(self.rng)
        return " ".join(filter(None, parts))

    @property
    def stream(self):
        from perturbk.kernels.streams import STREAMS

        return STREAMS[self.rng](self.d)

    @property
    def operands(self) -> list:
        import jax
        import jax.numpy as jnp

        def shape(*dims, dtype=jnp.float32):
            return jax.ShapeDtypeStruct(dims, dtype)

        batch, _, num_samples = SHAPE
        rows = (1, 1, batch, self.d) if self.op else (1, self.vectors, batch * self.d)
        words = self.stream.words_per_sample
        operands = [
            shape(1, words, num_samples, dtype=jnp.uint32),
            shape(*rows),
            shape(*(1,) * len(rows)),
        ]
        if self.primitive == "samples_and_dot":
            elements = batch * self.d
            operands += [shape(1, 1, elements), shape(1, 1, 1), shape(1, 1, elements)]
        elif self.primitive.endswith("dot"):
            operands.append(shape(*rows))
        elif self.primitive != "samples":
            operands.append(shape(1, self.vectors, num_samples))
        return operands

    @property
    def params(self) -> dict[str, object]:
        which = dict(op=self.op, inner=1) if self.op else dict(order=1, power=0)
        return dict(which, noise=self.noise, stream=self.stream)

    def machine_code(self, folder: Path) -> Path:
        """Compiles the kernel, into a file in `folder`."""
        for path in folder.iterdir():
            path.unlink()
        if self.implementation == "triton":
            launch = triton_aot.launches(self.primitive, "cuda", *self.operands, **self.params)[0]
            path = folder / "triton.cubin"
            path.write_bytes(launch.compile("cuda", 90).asm["cubin"])
            return path
        from perturbk import implementations

        run = functools.partial(
            implementations.run,
            self.primitive,
            "cuda",
            implementation=self.implementation,
            **self.params,
        )
        compile_for_h200(run, *self.operands)
        for path in folder.iterdir():
            if b"perturbk_" in path.read_bytes():  # among the names of an ELF file's symbols
                return path
        raise RuntimeError(f"no kernel of ours in the program for {self.name}")


_OF_JACOBIAN = functools.partial(Kernel, noise="gumbel", vectors=4)
_DRAWN = ("jax", "philox")
_TRITON = functools.partial(Kernel, implementation="triton")
_RANKED = dict(loops=2, d=64)  # drawn in one loop, ranked in another
# Coordinates -> turns by Threefry and Philox, which draws four at a time.
_TURNS = {16: (1, 1), 64: (4, 2), 100: (5, 5), 128: (8, 4)}
KERNELS = [
    *(
        Kernel(primitive, noise, variates=variates, rng=rng)
        for rng, variates in (("jax", 8), ("philox", 32))
        for primitive in ("score_dot", "score_sum")
        for noise in ("gumbel", "normal")
    ),
    *(
        _OF_JACOBIAN(primitive, variates=variates, rng=rng)
        for rng, variates in (("jax", 8), ("philox", 32))
        for primitive in ("score_dot", "score_sum")
    ),
    # Behind the loop of a race are those in which the winners' fours are drawn again, and, where it
    # proves nothing, all is compared exactly.
    *(
        Kernel(primitive, noise, op, variates, rng=rng, race=True)
        for rng in _DRAWN
        for noise, op, variates in (
            ("gumbel", "argmax", 16),
            ("normal", "argmax", 16),
            ("gumbel", "top_k_5", 8),
            ("gumbel", "top_k_32", 8),
        )
        for primitive in ("samples", "samples_and_dot")
    ),
    *(
        Kernel(
            primitive,
            "gumbel",
            op,
            variates=d,
            rng=rng,
            turns=turns,
            looped=primitive == "op_sum",
            d=d,
        )
        for op, primitive, sizes in (
            ("ranking", "op_sum", (16, 64, 100, 128)),
            ("ranking", "op_dot", (16, 64, 100)),
            ("sort", "op_sum", (16, 64, 128)),
        )
        for d in sizes
        for rng, turns in zip(_DRAWN, _TURNS[d], strict=True)
    ),
    *(
        Kernel("op_sum", "gumbel", "sort", variates, rng=rng, d=d)
        for rng in _DRAWN
        for variates, d in ((16, 256), (32, 1024))
    ),
    *(
        Kernel("op_sum", "gumbel", "ranking", variates, rng=rng, turns=1, pairs=pairs, d=d)
        for rng in _DRAWN
        for variates, d, pairs in ((16, 256, 0), (32, 1024, 2))
    ),
    *(
        _TRITON(primitive, noise, op, 8 if op else variates, rng=rng)
        for rng, variates in (("jax", 4), ("philox", 16))
        for primitive, op in (("samples", "argmax"), ("score_dot", ""), ("score_sum", ""))
        for noise in ("gumbel", "normal")
    ),
    *(
        _TRITON(primitive, "gumbel", "ranking", rng=rng, **_RANKED)
        for rng in _DRAWN
        for primitive in ("samples", "op_sum", "op_dot")
    ),
    # The turns of the winners are drawn once more in a loop of their own.
    *(_TRITON("samples", "gumbel", "top_k_5", rng=rng, behind=1) for rng in _DRAWN),
]


def count(kernel: Kernel, kept: Path) -> dict[str, float]:
    """Compiles a kernel; instructions per variate, registers, spills and projected ceiling."""
    path = kernel.machine_code(kept)
    registers, spilled = resources(path)
    sass = disassembled(path)
    if kernel.turns:
        hot = one_row(sass, kernel.turns, kernel.pairs, looped=kernel.looped)
    elif kernel.race:
        hot = first_loop(sass)
    else:
        hot = hot_loops(sass, kernel.loops, kernel.behind)
    return {
        "instructions": round(len(hot) / kernel.variates, 1),
        "registers": registers,
        "spilled bytes": spilled,
        "accesses to them": round(sum(op[:3] in ("LDL", "STL") for op in hot) / kernel.variates, 2),
        "ceiling, G variates/s": round(SMS * CLOCK * kernel.variates / cycles(hot) / 1e9),
    }


def faults(found: dict[str, dict[str, float]], recorded: dict[str, dict[str, float]]) -> list[str]:
    """What takes more than recorded, or less than half, spills, or is not recorded."""
    found_faults = []
    for name, row in found.items():
        old = recorded.get(name, {}).get("instructions")
        if old is None:
            found_faults.append(f"{name} is not recorded")
        elif not old / 2 < row["instructions"] <= old * (1 + TOLERANCE):  # half: a loop was missed
            found_faults.append(f"{name} takes {row['instructions']}, recorded {old}")
        if row["accesses to them"] > SPILLS * row["instructions"]:
            found_faults.append(f"{name} goes to spilled bytes {row['accesses to them']} times")
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
            start = time.perf_counter()
            found[kernel.name] = row = count(kernel, kept)
            figures = [f"{k}: {v}" for k, v in row.items()]
            figures.append(f"to compile: {time.perf_counter() - start:.0f} s")
            print(f"{kernel.name:30}", *figures, sep="  ", flush=True)
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
