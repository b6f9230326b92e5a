"""The demonstration, run as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import perturbk
from perturbk import demo_report
from perturbk.__main__ import main
from perturbk.demo_training import Settings, Task

TINY = ["--samples", "40", "--steps", "3"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perturbk", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def output() -> str:
    pytest.importorskip("sklearn")
    done = run(*TINY)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(output: str, head: str) -> list[str]:
    """Of each line that starts with `head`, the rest."""
    return re.findall(rf"^\s*{re.escape(head)} *(.*)$", output, re.MULTILINE)


def test_trains_both_models(output):
    steps = [re.findall(r"[\d.-]+", row) for row in rows(output, "step")]
    assert [int(step) for step, *_ in steps] == [0, 1, 2, 3] * 2
    for first, last in ((steps[0], steps[3]), (steps[4], steps[7])):
        assert float(last[1]) < float(first[1]), "the loss has not fallen"
        assert float(last[3]) > float(first[3]), "the held-out quality has not risen"


def test_agrees_with_the_closed_forms(output):
    values = rows(output, "value: softmax(x/sigma)") + rows(output, "value: sums of logistic")
    gradients = rows(output, "gradient: its VJP")
    assert len(values) == len(gradients) == 2
    for row, coordinates in zip(values + gradients, [640, 512] * 2, strict=True):
        z, _, _, count = map(float, row.split())
        assert 0 < z < 6
        assert 0.5 * coordinates < count <= coordinates


@pytest.mark.parametrize("what", ["value", "gradient"])
def test_agrees_with_the_others(output, what):
    found = rows(output, f"{what}, difference")
    assert len(found) == 2
    for row in found:
        pairs = [tuple(map(float, pair)) for pair in re.findall(r"(\S+) of (\S+)", row)]
        assert len(pairs) == 2, "one for the plain estimator and one for optax"
        assert all(difference < 1e-5 * largest for difference, largest in pairs)


@pytest.mark.parametrize("what", ["value", "value and gradient"])
def test_measures_time_and_memory(output, what):
    times, memory = rows(output, f"{what}, time"), rows(output, f"{what}, memory")
    assert len(times) == len(memory) == 2
    assert all(re.fullmatch(r"[\d.]+ ms( +[\d.]+ ms \([\d.]+x\)){2}", row) for row in times)
    assert all(re.fullmatch(r"[\d.]+ MB( +[\d.]+ MB \([\d.]+x\)){2}", row) for row in memory)


def test_says_what_ran_and_where(output):
    assert re.search(r"cores?; Python 3\.\d+\.\d+; jax \d", output)
    assert len(rows(output, "implementation")) == 2
    assert "kernel argmax_gumbel" in output and "kernel ranking_gumbel" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "0"], "argument --samples: must be an integer from 1 to 100000, got '0'"),
        (["--samples", "100001"], "got '100001'"),
        (
            ["--samples", "many"],
            "argument --samples: must be an integer from 1 to 100000, got 'many'",
        ),
        (["--sigma", "-1"], "argument --sigma: must be a positive finite number, got '-1'"),
        (["--sigma", "inf"], "argument --sigma: must be a positive finite number, got 'inf'"),
        (["--steps", "1.5"], "argument --steps: must be an integer from 1 to 1000000, got '1.5'"),
        (["--seed", "-1"], "argument --seed: must be an integer from 0 to 2147483647, got '-1'"),
        (["--implementation", "cuda"], "invalid choice: 'cuda'"),
        (["--sample", "5"], "unrecognized arguments: --sample"),
    ],
)
def test_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_exit_status_of_the_process():
    assert run("--samples", "0").returncode == 2


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in ("--samples", "--sigma", "--steps", "--seed", "--implementation"):
        assert option in text


@pytest.mark.parametrize("wrong_sigma", [None, 1.05])
@pytest.mark.parametrize("name", ["argmax", "ranking"])
def test_a_wrong_result_is_noticed(name, wrong_sigma):
    fun = {"argmax": perturbk.argmax_one_hot, "ranking": perturbk.ranking}[name]
    settings = Settings(samples=1000, sigma=1.0, steps=1, seed=0, implementation=None)
    f = perturbk.make_perturbed_fun(fun, settings.samples, wrong_sigma or settings.sigma)
    x = jax.random.normal(jax.random.key(0), (4, 6))
    task = Task(name, f, fun, x, rows="", before=0.0, after=0.0)
    args = (jax.random.split(jax.random.key(1), 4), x, jnp.ones((4, 6)).at[:, 0].set(-1.0))
    program = demo_report.compiled(demo_report.value_and_grad, f, args)
    lines = demo_report.against_closed_form(task, settings, program, args)
    if wrong_sigma is None:
        assert len(list(lines)) == 3
    else:
        with pytest.raises(demo_report.WrongResult, match="standard errors off"):
            list(lines)


def test_without_scikit_learn(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(TINY) == 1
    assert "-m pip install scikit-learn" in capsys.readouterr().err
