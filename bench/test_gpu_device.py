"""The script for a GPU, rehearsed on a CPU."""

import dataclasses
import json
import time
import types

import gpu_checks
import gpu_clocks
import gpu_device
import gpu_programs
import gpu_report
import gpu_times
import numpy as np
import pytest


@pytest.mark.parametrize("op", ["argmax", "top_k_5"])
def test_rehearsal(op, capsys):
    assert gpu_device.main(["--platform", "cpu", "--only", op, "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "the times below mean nothing" in out
    assert f"| {op} samples gumbel |" in out
    if op == "argmax":
        assert "perturbk philox" in out


def test_every_counted_kernel_is_timed():
    """But for those of other numbers of winners; Triton's have their own names."""
    counted = json.loads(gpu_times._COUNTED.read_text())["kernels"]
    wanted = gpu_programs.programs("", gpu_device._TIMED, gpu_device._TIMED_RANKED)
    names = {f"{prefix}{program.name}" for program in wanted for prefix in ("", "triton ")}
    assert {name for name in counted if not name.startswith("top_k_32")} <= names


@pytest.mark.parametrize("found", gpu_times.of_contests("", 1.0), ids=lambda c: c.kernel)
def test_kernels_of_contests(found):
    """They run, with a key for each row."""
    size = dataclasses.replace(found.program.size, batch=3, keys=3, num_samples=20)
    program = dataclasses.replace(found.program, size=size)
    (words, x, *_), out = program.operands(), program.compiled("pallas", "cpu")()
    assert words.shape[0] == x.shape[0] == out.shape[0] == 3
    assert "at 256x100x1000" in found.kernel


def test_ceilings_follow_the_device(monkeypatch):
    device = types.SimpleNamespace(core_count=66)
    monkeypatch.setattr(gpu_device.jax, "devices", lambda: [device])
    assert gpu_device.of_ceiling({"clocks.max.sm": "990 MHz"}) == pytest.approx(1 / 4)
    assert gpu_device.of_ceiling({}) == 1


def test_clocks_are_those_at_work(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    lines = r"0, 345, 70.1\n99, 1410, 690.5\n80, 1500, 500.0\n"
    tool.write_text(f"#!/bin/sh\nprintf '{lines}'\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with gpu_clocks.Clocks() as clocks:
        for _ in range(200):
            found = clocks.found()
            if found != {"clock at work": "unknown"}:
                break
            time.sleep(0.05)
    assert found["clock at work"] == "1455 MHz (least 1410)"
    assert found["power at work"] == "595 W (most 690)"
    monkeypatch.setenv("PATH", "")
    with gpu_clocks.Clocks() as clocks:
        assert clocks.found() == {"clock at work": "unknown"}


def test_the_table_of_the_readme():
    row = dict(
        case="c",
        library="perturbk",
        seconds=1e-3,
        optax_seconds=2e-3,
        ratio=2,
        goal=5.0,
        temp_bytes=1e6,
        optax_temp_bytes=2e6,
    )
    quick = dict(row, library="perturbk philox", seconds=5e-4, ratio=4, goal=6.0)
    kernels = [
        {"kernel": f"k{rng}", "rate": 3.0, "of ceiling": part}
        for rng, part in (("", 0.7), (" philox", 0.8))
    ]
    record = {"machine": {"device": "a GPU"}, "optax": [row, quick], "kernels": kernels}
    readme = (gpu_device.ROOT / "README.md").read_text("utf-8")
    found = gpu_report.in_readme(readme, record)
    cells = "| c | 2000 us | 1000 us, 2.00x | 500 us, 4.00x | 5x, 6x | 2.0 -> 1.0 |"
    assert cells in found and "| k | 3 (70%) | 3 (80%) |" in found
    assert gpu_report.in_readme(found, record) == found
    with pytest.raises(ValueError, match="one pair of marks"):
        gpu_report.in_readme("", record)


def test_the_readme_shows_what_is_recorded():
    record = json.loads(gpu_device.RECORD.read_text())
    readme = (gpu_device.ROOT / "README.md").read_text("utf-8")
    assert gpu_report.in_readme(readme, record) == readme


def test_what_is_not_compiled_in_time_is_a_fault(capsys):
    arguments = ["--platform", "cpu", "--only", "argmax", "--times-only", "--seconds", "-1"]
    assert gpu_device.main([*arguments, "--workers", "1"]) == 1
    assert "not compiled in time" in capsys.readouterr().out


def test_no_gpu():
    with pytest.raises(SystemExit, match="measures on 'cuda'"):
        gpu_device.main([])


def test_a_wrong_code_is_found():
    assert list(gpu_checks._apart("it", np.arange(3), np.array([0, 1, 3]), "cpu"))
