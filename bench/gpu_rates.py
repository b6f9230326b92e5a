"""What the projected ceilings rest on: how many instructions of each kind an SM starts per cycle.

    python bench/gpu_rates.py              measures on a GPU, at its highest clock
    python bench/gpu_rates.py --compile    counts the instructions of a step in machine code instead
                                           (sm_90), for which no GPU is needed

Each kind is a chain of steps on registers, several in each thread and enough threads to fill the
device. Pairs of kinds show which units work side by side.
"""

from __future__ import annotations

import argparse
import collections
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
_TOGETHER, _TURNS = 16, 2048  # steps in a turn of the loop
_TILE = (4, 128)  # chains: four in each thread
_PROGRAMS = 132 * 16 * 4
_CHAIN = (
    "{{ .reg .b32 a, b, lo, hi; .reg .b64 w; .reg .f32 f; mov.b32 a, $1; not.b32 b, $1;"
    " mov.b64 w, {{a, b}}; mov.b32 f, $1; {steps}"
    " mov.b64 {{lo, hi}}, w; xor.b32 a, a, b; xor.b32 a, a, lo; xor.b32 a, a, hi; mov.b32 b, f;"
    " xor.b32 $0, a, b; }}"
)


def probe(kind: str) -> Callable:
    """words int32 [programs, *tile] -> words, by many steps of one kind."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.experimental import pallas as pl

    from perturbk.kernels.pallas import launch
    from perturbk.kernels.ptx import ptx

    chain = _CHAIN.format(steps=_TOGETHER * f" {STEPS[kind]}")

    def body(x_ref, out_ref):
        def turn(_, words):
            return ptx(chain, "=r,r", jnp.int32, words)

        out_ref[...] = lax.fori_loop(0, _TURNS, turn, x_ref[...])

    spec = pl.BlockSpec((None, *_TILE), lambda p: (p, 0, 0))
    shape = jax.ShapeDtypeStruct((_PROGRAMS, *_TILE), jnp.int32)
    return lambda words: launch(
        body, [words], [spec], spec, shape, grid=(_PROGRAMS,), name="probe", platform="cuda"
    )


def count(kept: Path) -> dict[str, dict[str, float]]:
    """Instructions of a step in the loop, by kind.

    kept: what `gpu_aot.prepare` returns.
    """
    import jax
    import jax.numpy as jnp

    shape = jax.ShapeDtypeStruct((_PROGRAMS, *_TILE), jnp.int32)
    steps, found = _TOGETHER * _TILE[0], {}
    for kind in STEPS:
        for path in kept.iterdir():
            path.unlink()
        gpu_aot.compile_for_h200(probe(kind), shape)
        code = next(p for p in kept.iterdir() if b"perturbk_probe" in p.read_bytes())
        ops = collections.Counter(gpu_code.first_loop(gpu_code.disassembled(code)))
        found[kind] = {op: round(n / steps, 2) for op, n in ops.items() if n >= steps / 4}
    return found


def measure() -> dict[str, float]:
    """Steps that a lane of an SM takes in a cycle at the highest clock, times lanes, by kind."""
    import gpu_device
    import jax
    import jax.numpy as jnp

    from perturbk.demo_measure import alternate

    gpu_device.platform_of("cuda")
    words = jnp.arange(_PROGRAMS * _TILE[0] * _TILE[1], dtype=jnp.int32)
    words = words.reshape(_PROGRAMS, *_TILE)
    calls = {
        kind: functools.partial(jax.jit(probe(kind)).lower(words).compile(), words)
        for kind in STEPS
    }
    times = alternate(calls, seconds=5)
    part = gpu_device.of_ceiling(gpu_device.nvidia_smi())
    cycles = gpu_code.SMS * gpu_code.CLOCK * part
    return {kind: words.size * _TOGETHER * _TURNS / times.median(kind) / cycles for kind in STEPS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--compile", action="store_true", help="count instructions, measure nothing"
    )
    if parser.parse_args().compile:
        with tempfile.TemporaryDirectory() as folder:
            for kind, ops in count(gpu_aot.prepare(Path(folder))).items():
                print(f"{kind:30}", *(f"{op} {n:g}" for op, n in ops.items()), sep="  ")
        return 0
    for kind, rate in measure().items():
        print(f"{kind:30}  {rate:.1f} steps per cycle and SM", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
