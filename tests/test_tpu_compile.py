"""Every TPU kernel through the real TPU compiler, for each chip, with no TPU at hand.

Needs libtpu, which has a licence of its own (see CONTRIBUTING.md) and is never installed by our
extras but `tpu-aot`. Runs bench/tpu_cases.py in a process of its own, because libtpu reads its
environment once.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
TIMEOUT = 400  # seconds; a chip takes one minute, and several on a busy machine

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


def test_cycles_are_as_recorded():
    """Of every kernel on v5e, in the compiler's schedule."""
    command = [sys.executable, BENCH / "tpu_cycles.py", "--check", "--chip", "v5e"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


COMPILE_ALL = """
import itertools, tpu_aot
tpu_aot.prepare()
import tpu_cases
for case in itertools.islice(tpu_cases.kernels(), 0, None, int(sys.argv[2])):
    f, shapes = case.make()
    text = tpu_aot.compile_for(sys.argv[1], f, *shapes).as_text()
    assert "tpu_custom_call" in text, case.name
    print(case.name)
"""


# All of v5e are where cycles are counted; v6e lies between it and v7x.
@pytest.mark.parametrize(("chip", "every"), [("v4", "1"), ("v6e", "3"), ("v7x", "1")])
def test_kernels_compile(chip, every):
    done = _run(COMPILE_ALL, chip, every)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = done.stdout
    for op in ("samples", "op_sum", "op_dot", "score_dot", "score_sum"):
        assert op in compiled


# Rows of every width: none that needs a kernel, ragged ones, several pieces, ranks that XLA sorts.
COMPILE_CALLS = """
import tpu_aot
tpu_aot.prepare()
import jax, jax.numpy as jnp
import perturbk

def compiled(fun, dtype, d, *batch, num_samples=200, rng="jax"):
    f = perturbk.make_perturbed_fun(fun, num_samples, 0.5, rng=rng)

    def g(key, x):
        return jax.value_and_grad(lambda x: jnp.sum(f(key, x) ** 2))(x)

    for _ in batch:
        g = jax.vmap(g)
    shapes = ((*batch, 2), jnp.uint32), ((*batch, 3, d), dtype)
    done = tpu_aot.compile_for(sys.argv[1], g, *(jax.ShapeDtypeStruct(*s) for s in shapes))
    assert done.out_info[1].dtype == dtype
    assert ("perturbk_" in done.as_text()) == (d > 1), (fun, dtype, d)

for d in (1, 2, 63, 1000, 99999):
    compiled(perturbk.argmax_one_hot, jnp.bfloat16, d)
for d in (1, 2, 63, 1025):
    compiled(perturbk.ranking, jnp.bfloat16, d)
compiled(jnp.sort, jnp.float32, 63)
for d in (2, 63, 99999):
    compiled(lambda x: perturbk.top_k(x, min(d - 1, 10)), jnp.bfloat16, d)
for fun in (perturbk.argmax_one_hot, perturbk.ranking, lambda x: perturbk.top_k(x, 10)):
    compiled(fun, jnp.float16, 100, 5, num_samples=1000)
for fun in (perturbk.argmax_one_hot, perturbk.ranking):
    for rng in ("threefry_pair", "hardware"):
        compiled(fun, jnp.float32, 63, rng=rng)
compiled(perturbk.argmax_one_hot, jnp.bfloat16, 3001, 5, num_samples=1100, rng="hardware")
compiled(lambda x: perturbk.argmax_one_hot(x, 0), jnp.float32, 3001, rng="threefry_pair")
"""


COMPILE_PHILOX = """
import tpu_aot
tpu_aot.prepare()
import jax, jax.numpy as jnp
import perturbk

for fun, num_samples, noise in (
    (perturbk.argmax_one_hot, 300, perturbk.Gumbel()),
    (perturbk.argmax_one_hot, 300, perturbk.Normal()),
    (perturbk.argmax_one_hot, 10, perturbk.Gumbel()),  # few, which are drawn at once
    (jnp.sort, 10, perturbk.Normal()),
    (lambda x: perturbk.top_k(x, 3), 10, perturbk.Gumbel()),
):
    f = perturbk.make_perturbed_fun(fun, num_samples, 0.5, noise, rng="philox")

    def g(key, x):
        return jax.value_and_grad(lambda x: jnp.sum(f(key, x) ** 2))(x)

    shapes = ((2,), jnp.uint32), ((3, 33), jnp.float32)
    done = tpu_aot.compile_for(sys.argv[1], g, *(jax.ShapeDtypeStruct(*s) for s in shapes))
    assert "perturbk_" not in done.as_text()
"""


def test_philox_compiles_in_xla():
    """No kernel of ours, and the wide multiplication that they lack."""
    done = _run(COMPILE_PHILOX, "v5e")
    assert done.returncode == 0, done.stderr[-3000:]


def test_calls_in_sixteen_bits_compile():
    """The public function: 16 bits outside, the kernels' float32 inside; a batch of keys and x.

    For the oldest chip, whose vectors know no bfloat16. The kernels are compiled for all.
    """
    done = _run(COMPILE_CALLS, "v4")
    assert done.returncode == 0, done.stderr[-3000:]


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
