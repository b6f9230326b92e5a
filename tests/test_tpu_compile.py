"""Every TPU kernel through the real TPU compiler, for each chip, with no TPU at hand.

Needs libtpu, which has a licence of its own (see CONTRIBUTING.md) and is never installed by our
extras but `tpu-aot`. Runs bench/tpu_cycles.py in a process of its own, because libtpu reads its
environment once.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
TIMEOUT = 280  # seconds; a chip takes about half a minute

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="no libtpu: pip install '.[tpu-aot]', which has a licence of its own",
    ),
    pytest.mark.skipif(not BENCH.exists(), reason="bench/ is not here"),
]


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(BENCH)!r})\n{script}"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


COMPILE_ALL = """
import tpu_aot
tpu_aot.prepare()
import tpu_cycles
for case in tpu_cycles.kernels():
    f, shapes = case.make()
    text = tpu_aot.compile_for(sys.argv[1], f, *shapes).as_text()
    assert "tpu_custom_call" in text, case.name
    print(case.name)
"""


@pytest.mark.parametrize("chip", ["v4", "v5e", "v6e", "v7x"])
def test_kernels_compile(chip):
    done = _run(COMPILE_ALL, chip)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = done.stdout
    for op in ("samples", "op_sum", "op_dot", "score_dot", "score_sum"):
        assert op in compiled


OVERFLOW = """
import tpu_aot
tpu_aot.prepare()
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from perturbk.kernels.pallas import launch

def body(x_ref, out_ref):
    out_ref[...] = x_ref[...] + 1

def f(x):
    shape = (int(sys.argv[1]), 128)
    spec = pl.BlockSpec(shape, lambda i: (i, 0))
    return launch(body, [x], [spec], spec, x, grid=(2,), name="whole", platform="tpu")

x = jax.ShapeDtypeStruct((2 * int(sys.argv[1]), 128), jnp.float32)
tpu_aot.compile_for("v5e", f, x)
"""


def test_the_check_can_fail():
    """The same kernel compiles with small blocks, and overflows the vector memory with large ones.

    Lowering for a TPU, as jax.export does, accepts both.
    """
    done = _run(OVERFLOW, "1024")
    assert done.returncode == 0, done.stderr[-3000:]
    done = _run(OVERFLOW, str(1 << 20))
    assert done.returncode != 0
    assert "vmem" in done.stderr.lower()
