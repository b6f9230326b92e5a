"""The demonstration: `python -m perturbk` trains on real data, then checks and measures itself."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable

from perturbk import demo_measure, demo_report, demo_training
from perturbk.implementations import IMPLEMENTATIONS

_DESCRIPTION = """\
Trains two small models on data sets of scikit-learn: a classifier of handwritten digits through a
perturbed argmax, and a ranking of wines through perturbed ranks. Then compares both perturbed
functions with their exact closed forms, and, under the same key, with the plain estimator and
with optax where it is installed: results, time, and memory. Takes under a minute on two cores.
"""


def _integer(least: int, most: int) -> Callable[[str], int]:
    """Parser of an integer within bounds, with an error that says them."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"must be an integer from {least} to {most}, got {text!r}"
            )
        return value

    return parse


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a positive finite number, got {text!r}")
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
        type=_integer(1, 100_000),  # the plain estimator then takes a gigabyte
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
        type=_integer(1, 1_000_000),
        default=100,
        metavar="N",
        help="training steps of each model",
    )
    parser.add_argument(
        "--seed",
        type=_integer(0, 2**31 - 1),
        default=0,
        metavar="N",
        help="of the held-out part, the batches, and the noise",
    )
    parser.add_argument(
        "--implementation",
        choices=IMPLEMENTATIONS,
        default=None,
        help="run this one instead of letting perturbk choose; pallas is slow on a CPU, where it "
        "is interpreted, and triton needs a GPU",
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
