"""What the projected ceilings rest on: how many instructions of each kind an SM starts per cycle.

    python bench/gpu_rates.py              measures on a GPU, at its highest clock
    python bench/gpu_rates.py --compile    counts the instructions of a step in machine code instead
                                           (sm_90), for which no GPU is needed

Each kind is a chain of steps on registers, several in each thread and enough threads to fill the
device. Pairs of kinds show which units work side by side; one kind in other programs, what few
warps, long code, and the start of a program cost.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import gpu_aot  # noqa: E402
import gpu_code  # noqa: E402

# Of a step, on words a and b, a wide word w and a number f. No step can be merged with the next.
_ROTATE = "shf.l.wrap.b32 b, b, b, 13;"
_WIDE = "mul.wide.u32 w, b, 8192; mov.b64 {lo, hi}, w;"
STEPS = {
    "logic": "lop3.b32 a, a, b, $1, 0xE8; lop3.b32 b, b, a, $1, 0x2D;",
    "shift": "shf.l.wrap.b32 a, a, b, 7; shf.l.wrap.b32 b, b, a, 9;",
    "sum": "add.u32 a, a, b; add.u32 b, b, a;",
    "product": "mad.lo.u32 a, a, b, $1; mad.lo.u32 b, b, a, $1;",
    "wide product": "mov.b64 {lo, hi}, w; mad.wide.u32 w, lo, hi, w;",
    "float": "fma.rn.f32 f, f, f, f;",
    "logarithm": "lg2.approx.ftz.f32 f, f;",
    "round of Threefry": f"add.u32 a, a, b; {_ROTATE} xor.b32 b, b, a;",
    "the same by a wide product": f"add.u32 a, a, b; {_WIDE} lop3.b32 b, hi, lo, a, 0x56;",
    "half a round of Philox": f"{_WIDE} lop3.b32 b, hi, a, $1, 0x96; xor.b32 a, lo, b;",
}
_TILE = (4, 128)  # chains: four in each thread


@dataclasses.dataclass(frozen=True)
class Work:
    """Programs of four warps, their turns of a loop, and the steps in each turn."""

    programs: int = gpu_code.SMS * 64
    turns: int = 2048
    together: int = 16

    @property
    def steps(self) -> int:
        return self.programs * _TILE[0] * _TILE[1] * self.turns * self.together


_USUAL, _IN_OTHERS = Work(), "round of Threefry"
# What is probed: a kind of step, and the work. A program of the last takes about as many
# instructions as one that ranks 16 coordinates; all of them read and write 9 GB, which takes a part
# of their time.
PROBES = {kind: (kind, _USUAL) for kind in STEPS} | {
    f"{_IN_OTHERS}, {how}": (_IN_OTHERS, work)
    for how, work in {
        "one warp for each scheduler": Work(programs=gpu_code.SMS, turns=1 << 16),
        "two warps for each": Work(programs=gpu_code.SMS * 2, turns=1 << 16),
        "in 48 kB of code": Work(turns=128, together=256),
        "in 32 times as many programs": Work(programs=_USUAL.programs * 32, turns=64),
        "in 256 times as many": Work(programs=_USUAL.programs * 256, turns=8),
    }.items()
}
_CHAIN = (
    "{{ .reg .b32 a, b, lo, hi; .reg .b64 w; .reg .f32 f; mov.b32 a, $1; not.b32 b, $1;"
    " mov.b64 w, {{a, b}}; mov.b32 f, $1; {steps}"
    " mov.b64 {{lo, hi}}, w; xor.b32 a, a, b; xor.b32 a, a, lo; xor.b32 a, a, hi; mov.b32 b, f;"
    " xor.b32 $0, a, b; }}"
)


def probe(kind: str, work: Work) -> Callable:
    """words int32 [programs, *tile] -> words, by many steps of one kind."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.experimental import pallas as pl

    from perturbk.kernels.pallas import launch
    from perturbk.kernels.ptx import ptx

    chain = _CHAIN.format(steps=work.together * f" {STEPS[kind]}")

    def body(x_ref, out_ref):
        def turn(_, words):
            return ptx(chain, "=r,r", jnp.int32, words)

        out_ref[...] = lax.fori_loop(0, work.turns, turn, x_ref[...])

    spec = pl.BlockSpec((None, *_TILE), lambda p: (p, 0, 0))
    shape, grid = jax.ShapeDtypeStruct((work.programs, *_TILE), jnp.int32), (work.programs,)
    return lambda words: launch(
        body, [words], [spec], spec, shape, grid=grid, name="probe", platform="cuda"
    )


def count(kept: Path) -> dict[str, dict[str, float]]:
    """Instructions of a step in the loop, by probe.

    kept: what `gpu_aot.prepare` returns.
    """
    import jax
    import jax.numpy as jnp

    found = {}
    for name, (kind, work) in PROBES.items():
        for path in kept.iterdir():
            path.unlink()
        shape = jax.ShapeDtypeStruct((work.programs, *_TILE), jnp.int32)
        gpu_aot.compile_for_h200(probe(kind, work), shape)
        code = next(p for p in kept.iterdir() if b"perturbk_probe" in p.read_bytes())
        ops = collections.Counter(gpu_code.first_loop(gpu_code.disassembled(code)))
        steps = work.together * _TILE[0]
        found[name] = {op: round(n / steps, 2) for op, n in ops.items() if n >= steps / 4}
    return found


def measure() -> dict[str, float]:
    """Steps that a lane of an SM takes in a cycle at the highest clock, times lanes, by probe."""
    import gpu_device
    import jax
    import jax.numpy as jnp

    from perturbk.demo_measure import alternate

    gpu_device.platform_of("cuda")
    calls = {}
    for name, (kind, work) in PROBES.items():
        words = jnp.arange(work.programs * _TILE[0] * _TILE[1], dtype=jnp.int32)
        words = words.reshape(-1, *_TILE)
        calls[name] = functools.partial(jax.jit(probe(kind, work)).lower(words).compile(), words)
    times = alternate(calls, seconds=5)
    part = gpu_device.of_ceiling(gpu_device.nvidia_smi())
    cycles = gpu_code.SMS * gpu_code.CLOCK * part
    return {name: work.steps / times.median(name) / cycles for name, (_, work) in PROBES.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--compile", action="store_true", help="count instructions, measure nothing"
    )
    if parser.parse_args().compile:
        with tempfile.TemporaryDirectory() as folder:
            for name, ops in count(gpu_aot.prepare(Path(folder))).items():
                print(f"{name:50}", *(f"{op} {n:g}" for op, n in ops.items()), sep="  ")
        return 0
    for name, rate in measure().items():
        print(f"{name:50}  {rate:.1f} steps per cycle and SM", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
