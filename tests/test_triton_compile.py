"""The Triton kernels through Triton's compiler, to machine code of three GPUs, with no GPU at hand.

In a process of its own: in this one the kernels may belong to the interpreter.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton"),
    pytest.mark.skipif(not BENCH.exists(), reason="bench/ is not here"),
]

COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
backend, arch = sys.argv[2], sys.argv[3]
import jax, jax.numpy as jnp
import triton_aot
from perturbk.kernels.streams import STREAMS

def compile(primitive, d, num_samples, rng="jax", **params):
    params["stream"] = stream = STREAMS[rng](3 if params.get("inner") == 3 else d)
    x = jax.ShapeDtypeStruct((1, 1, 3, d) if "op" in params else (1, 1, 3 * d), jnp.float32)
    keys = jax.ShapeDtypeStruct((1, stream.words_per_sample, num_samples), jnp.uint32)
    weights = jax.ShapeDtypeStruct((1, 1, num_samples), jnp.float32)
    last = x if primitive.endswith("dot") else weights
    operands = (keys, x, x) if primitive == "samples" else (keys, x, x, last)
    platform = "rocm" if backend == "hip" else "cuda"
    for launch in triton_aot.launches(primitive, platform, *operands, **params):
        compiled = launch.compile(backend, int(arch) if arch.isdigit() else arch)
        code = compiled.asm["hsaco" if backend == "hip" else "cubin"]
        print(primitive, launch.kernel.__name__, len(code))

op = dict(inner=3, noise="gumbel")
compile("op_sum", 100, 1000, op="argmax", **op)
compile("op_sum", 1, 1, op="argmax", inner=1, noise="normal")
for order, power, noise in ((1, 0, "gumbel"), (2, 2, "normal")):
    compile("score_dot", 100, 1000, order=order, power=power, noise=noise)
    compile("score_sum", 100, 1000, order=order, power=power, noise=noise)
compile("samples", 1, 1, op="ranking", **op)
compile("samples", 64, 1000, op="ranking_descending", **op)
compile("op_sum", 20, 1000, op="ranking_nan_first", **op)
compile("op_dot", 64, 1000, op="ranking", inner=1, noise="normal")
compile("op_sum", 20, 1000, op="sort_descending", **op)
compile("samples", 64, 1000, op="sort", inner=1, noise="gumbel", rng="philox")
compile("op_sum", 1000, 1000, op="top_k_5", **op)
compile("samples", 1, 1, op="top_k_1", inner=1, noise="normal")
compile("samples", 100, 1000, op="top_k_indices_32", inner=1, noise="gumbel", rng="philox")
compile("op_sum", 63, 1000, op="argmax", inner=1, noise="normal", rng="philox")
compile("op_sum", 63, 1000, op="argmax", inner=3, noise="normal", rng="philox")
compile("op_dot", 20, 1000, op="ranking", **op, rng="philox")
compile("score_dot", 100, 1000, order=1, power=1, noise="gumbel", rng="philox")
compile("score_sum", 7, 1, order=1, power=0, noise="gumbel", rng="philox")
"""


@pytest.mark.parametrize(("backend", "arch"), [("cuda", "80"), ("cuda", "90"), ("hip", "gfx942")])
def test_kernels_compile(backend, arch):
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, str(BENCH), backend, arch]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 25 and all(int(line.split()[-1]) > 0 for line in lines)
