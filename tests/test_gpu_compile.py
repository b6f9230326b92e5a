"""The GPU kernels through XLA's CUDA compiler and ptxas, with no GPU at hand.

Needs JAX's CUDA plugin (without CUDA's libraries) and triton, which no extra of ours for testing
installs; .ci/run does. Runs in processes of their own, because XLA reads its flags once.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"

pytestmark = [
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("jax_plugins.xla_cuda13", "triton")))
        if importlib.util.find_spec("jax_plugins")
        else True,
        reason="no jax-cuda13-plugin or no triton",
    ),
    pytest.mark.skipif(not BENCH.exists(), reason="bench/ is not here"),
]

COMPILE = """
import functools, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import gpu_aot
with tempfile.TemporaryDirectory() as folder:
    kept = gpu_aot.prepare(Path(folder))
    import jax, jax.numpy as jnp, optax
    import perturbk

    def gradient(make, op, num_samples):
        fun = {
            "argmax": lambda x: jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1]),
            "ranking": lambda x: jnp.argsort(jnp.argsort(x, axis=-1), axis=-1),
            "sort": lambda x: jnp.sort(x, -1),
            "top_k": lambda x: perturbk.top_k(x, min(5, x.shape[-1])),
            "top_32": lambda x: jax.lax.top_k(x, 32)[1],
        }[op]
        f = make(fun, num_samples, 0.5)
        return lambda key, x: jax.value_and_grad(lambda x: jnp.sum(f(key, x) ** 2))(x)

    def temporaries(make, op, batch, d, num_samples, dtype=jnp.float32):
        key, x = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((batch, d), dtype)
        program = gpu_aot.compile_for_h200(gradient(make, op, num_samples), key, x)
        return program.memory_analysis().temp_size_in_bytes
    exec(sys.argv[2])
"""


def _run(script: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, str(BENCH), script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_kernels_compile_at_ragged_shapes():
    """Value and gradient, every op, down to one coordinate and one sample, some in 16 bits."""
    script = """
for op, batch, d, num_samples in (
    ("argmax", 1, 1, 1), ("argmax", 3, 63, 129), ("argmax", 1, 1000, 1000),
    ("ranking", 1, 1, 1), ("ranking", 3, 33, 129), ("ranking", 2, 200, 129),
    ("ranking", 2, 100, 129), ("sort", 3, 33, 129), ("sort", 2, 200, 129),
    ("top_k", 1, 1, 1), ("top_k", 3, 63, 129), ("top_32", 2, 40, 129),
    ("ranking", 9000, 5, 300),  # several runs of samples in a program
):
    for dtype in (jnp.float32, jnp.bfloat16)[: 2 if d == 63 or (op, d) == ("ranking", 33) else 1]:
        temporaries(perturbk.make_perturbed_fun, op, batch, d, num_samples, dtype)
        print(op, batch, d, num_samples, len(list(kept.iterdir())), "kernels")
for rng in ("philox", "threefry_pair"):
    make = functools.partial(perturbk.make_perturbed_fun, rng=rng)
    for op, batch, d in (("argmax", 1, 1), ("argmax", 3, 63), ("ranking", 3, 33), ("top_k", 3, 5)):
        temporaries(make, op, batch, d, 129)
        print(op, batch, d, len(list(kept.iterdir())), "kernels of", rng)
"""
    lines = [line.partition(" kernels")[0] for line in _run(script).splitlines()]
    assert len(lines) == 24
    counts = [int(line.split()[-1]) for line in lines]
    assert counts == sorted(counts) and counts[0] > 0


@pytest.mark.skipif(importlib.util.find_spec("jax_triton") is None, reason="no jax-triton")
def test_triton_programs_compile():
    """Value and gradient with native Triton kernels in the program, through jax-triton."""
    script = """
make = functools.partial(perturbk.make_perturbed_fun, implementation="triton")
key = jax.ShapeDtypeStruct((2,), jnp.uint32)
for op, batch, d in (("argmax", 1, 1), ("argmax", 3, 100), ("ranking", 3, 20)):
    x = jax.ShapeDtypeStruct((batch, d), jnp.float32)
    program = gpu_aot.compile_for_h200(gradient(make, op, 300), key, x)
    print(op, d, program.as_text().count('custom_call_target="triton_kernel_call_ffi"'))
"""
    lines = _run(script).splitlines()
    # Codes, which are kept for the backward pass, and the score. One coordinate has no gradient.
    assert lines == ["argmax 1 0", "argmax 100 2", "ranking 20 2"]


def test_temporaries_are_a_fiftieth_of_optax():
    """Of value and gradient: 131 MB where optax takes 16 to 82 GB."""
    script = """
import optax
for shape in ((256, 100, 1000), (4096, 1000, 1000)):
    for op in ("argmax", "ranking", "top_k"):
        ours, theirs = (
            temporaries(make, op, *shape)
            for make in (perturbk.make_perturbed_fun, optax.perturbations.make_perturbed_fun)
        )
        print(op, ours, theirs)
"""
    lines = _run(script).splitlines()
    assert len(lines) == 6
    for line in lines:
        op, ours, theirs = line.split()
        assert int(theirs) >= 50 * int(ours), (op, ours, theirs)


def test_probes_are_what_they_say():
    """Those of the units' rates: each step takes its own instructions, and no others."""
    script = """
import gpu_rates
print(gpu_rates.count(kept))
"""
    found = ast.literal_eval(_run(script))
    logic = found["half a round of Philox"].pop("LOP3.LUT")
    assert found["half a round of Philox"] == {"IMAD.WIDE.U32": 1} and 2 <= logic < 2.3
    assert found["shift"] == {"SHF.L.W.U32.HI": 2} and found["product"] == {"IMAD": 2}
    assert found["float"] == {"FFMA": 1} and found["logarithm"] == {"MUFU.LG2": 1}
    assert found["wide product"]["IMAD.WIDE.U32"] == 1
    assert found["the same by a wide product"]["IMAD.WIDE.U32"] == 1
    rounds = [sum(ops.values()) for name, ops in found.items() if "round of Threefry" in name]
    assert len(rounds) == 6 and all(3 <= instructions < 3.2 for instructions in rounds)


def test_instructions_are_as_recorded():
    tool = BENCH / "gpu_instructions.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", tool, "--check"],
        capture_output=True, text=True, timeout=850, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
