"""The demonstration: `python -m perturbk` trains on real data, then checks and measures itself."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time

from perturbk import demo_measure, demo_report, demo_training
from perturbk.implementations import IMPLEMENTATIONS

_DESCRIPTION = """\
Trains two small models on data sets of scikit-learn: a classifier of handwritten digits through a
perturbed argmax, and a ranking of wines through perturbed ranks. Then compares both perturbed
functions with their exact closed forms, and, under the same key, with the plain estimator and
with optax where it is installed: results, time, and memory. Takes under a minute on two cores.
"""


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return value


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a positive finite number, got {text!r}")
    return value


def _key_seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**31 - 1, got {text!r}")
    return value


def _parse(argv: list[str] | None) -> demo_training.Settings:
    parser = argparse.ArgumentParser(
        prog="python -m perturbk",
        description=_DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--samples",
        type=_positive_int,
        default=1000,
        metavar="N",
        help="perturbed copies of each input; more of them lower the noise of the gradient",
    )
    parser.add_argument(
        "--sigma",
        type=_positive_float,
        default=1.0,
        metavar="S",
        help="scale of the noise; the models adapt theirs to it",
    )
    parser.add_argument(
        "--steps",
        type=_positive_int,
        default=100,
        metavar="N",
        help="training steps of each model",
    )
    parser.add_argument(
        "--seed", type=_key_seed, default=0, metavar="N", help="of the split, batches, and noise"
    )
    parser.add_argument(
        "--implementation",
        choices=IMPLEMENTATIONS,
        default=None,
        help="run this one instead of letting perturbk choose; pallas is slow on a CPU, where it "
        "is interpreted",
    )
    return demo_training.Settings(**vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    """Runs the demonstration; returns the exit status."""
    settings = _parse(argv)
    if importlib.util.find_spec("sklearn") is None:
        print(
            "python -m perturbk trains on the digits and wine data sets, which are part of "
            "scikit-learn; it is not installed here. Install it with\n"
            f"    {sys.executable} -m pip install scikit-learn\n"
            "or as perturbk's extra [demo].",
            file=sys.stderr,
        )
        return 1
    start = time.perf_counter()
    about = demo_measure.machine()
    versions = (f"{name} {about[name]}" for name in ("jax", "jaxlib", "optax"))
    print(f"{about['machine']}; Python {about['python']}; {', '.join(versions)}\n")
    tasks = []
    for train in (demo_training.classify_digits, demo_training.rank_wines):
        tasks.append(train(settings))
        print()
    try:
        for task in tasks:
            for line in demo_report.report(task, settings):
                print(line, flush=True)
            print()
    except demo_report.WrongResult as error:
        print(f"WRONG: {error}", file=sys.stderr)
        return 1
    print(
        "|z|: error in standard errors, as independent keys give them; below 6 is right.\n"
        "naive: the plain estimator (kernels/reference.py). Time: median of alternating calls,\n"
        "and median ratio to perturbk's. Memory: temporaries of the compiled program. Difference:\n"
        "from perturbk's result under the same key, of the largest value.\n"
        f"Done in {time.perf_counter() - start:.0f} s."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
