"""The demonstration's last part: is it right, is it fast, and how much memory does it take?"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import perturbk
from perturbk import demo_measure as measure
from perturbk.demo_training import Settings, Task
from perturbk.kernels.reference import perturbed_mean

_KEYS = 64  # independent runs behind a standard error, at least
_SAMPLES = 64_000  # of all these runs together, at least
# A coordinate is judged if so many samples are expected to differ from the usual output: below
# that the mean of its samples is far from normal, and a standard error says little.
_EVENTS = 100
_Z = 6.0  # standard errors: one normal variate in a billion lies outside


class WrongResult(Exception):
    """A result is not that of the closed form, or not that of the others."""


def report(task: Task, settings: Settings) -> Iterator[str]:
    """Lines of the comparison, on what the trained model gives for held-out data.

    Raises:
        WrongResult: at the line that shows it.
    """
    rows, d = task.x.shape
    leaf = perturbk.explain(task.perturbed, task.x[0]).leaves[0]
    path = f"kernel {leaf.kernel}" if leaf.kernel else "general path"
    yield f"{task.name}: x [{rows}, {d}], {task.rows}; {settings.samples} samples, Gumbel noise"
    yield f"  implementation   {leaf.implementation}, {path}: {leaf.reason}"
    yield f"  held-out quality {task.before:.3f} before training, {task.after:.3f} after"

    # As a column of the table: the estimator, its value, and its value and gradient.
    fs = {"perturbk": task.perturbed, **_others(task, settings)}
    weights = np.random.default_rng(settings.seed).normal(size=task.x.shape)
    args = (jax.random.split(jax.random.key(settings.seed), rows), task.x, jnp.float32(weights))
    values = {name: compiled(_value, f, args) for name, f in fs.items()}
    grads = {name: compiled(value_and_grad, f, args) for name, f in fs.items()}

    yield ""
    yield from against_closed_form(task, settings, grads["perturbk"], args)
    yield ""
    yield _row("", *fs)
    for what, programs in (("value", values), ("value and gradient", grads)):
        yield from _costs(what, programs, args)
    yield from _differences(grads, args, settings)


def _others(task: Task, settings: Settings) -> dict[str, Callable]:
    """What perturbk is compared with: the plain estimator, and optax if installed."""
    plain = functools.partial(
        perturbed_mean,
        task.fun,
        num_samples=settings.samples,
        sigma=settings.sigma,
        noise=perturbk.Gumbel(),
    )
    others: dict[str, Callable] = {"naive": plain}
    if importlib.util.find_spec("optax"):
        from optax import perturbations

        fun: Any = task.fun  # optax's annotations want one of trees
        others["optax"] = perturbations.make_perturbed_fun(fun, settings.samples, settings.sigma)
    return others


def _value(f: Callable, keys: jax.Array, x: jax.Array, weights: jax.Array) -> jax.Array:
    del weights
    return jax.vmap(f)(keys, x)


def value_and_grad(f: Callable, keys: jax.Array, x: jax.Array, weights: jax.Array):
    """(value, gradient of <weights, value> with respect to x)."""
    value, pullback = jax.vjp(lambda x: jax.vmap(f)(keys, x), x)
    return value, pullback(weights)[0]


def compiled(program: Callable, f: Callable, args: tuple) -> jax.stages.Compiled:
    """`program` of a perturbed function, compiled for such arguments."""
    return jax.jit(functools.partial(program, f)).lower(*args).compile()


def _softmax(x: np.ndarray, sigma: float, g: np.ndarray) -> tuple[np.ndarray, ...]:
    """Expected one-hot argmax under Gumbel noise, its gradient, and its variance."""
    p = np.exp((x - x.max(-1, keepdims=True)) / sigma)
    p /= p.sum(-1, keepdims=True)
    return p, p * (g - (p * g).sum(-1, keepdims=True)) / sigma, p * (1 - p)


def _logistic_sums(x: np.ndarray, sigma: float, g: np.ndarray) -> tuple[np.ndarray, ...]:
    """Expected ranks under Gumbel noise, their gradient, and a lower bound of their variance.

    The rank of i is the number of j below it, each so with probability logistic((x_i - x_j) /
    sigma). These events are positively correlated, hence the bound.
    """
    above = 0.5 * (1 + np.tanh((x[..., :, None] - x[..., None, :]) / (2 * sigma)))
    spread = above * (1 - above)
    spread[..., np.arange(x.shape[-1]), np.arange(x.shape[-1])] = 0
    gradient = (spread * (g[..., :, None] - g[..., None, :])).sum(-1) / sigma
    return above.sum(-1) - 0.5, gradient, spread.sum(-1)


_CLOSED_FORMS = {
    "argmax": ("softmax(x/sigma)", _softmax),
    "ranking": ("sums of logistic", _logistic_sums),
}


def against_closed_form(task: Task, settings: Settings, program, args) -> Iterator[str]:
    """Errors of the mean over many keys, in standard errors that these keys give."""
    runs = max(_KEYS, -(-_SAMPLES // settings.samples))
    _, x, weights = args
    name, exact = _CLOSED_FORMS[task.name]
    value, grad, variance = exact(
        np.asarray(x, np.float64), settings.sigma, np.asarray(weights, np.float64)
    )
    events = variance * settings.samples * runs
    judged = (events >= _EVENTS, np.broadcast_to(events.max(-1, keepdims=True) >= _EVENTS, x.shape))

    sums = np.zeros((2, 2, *x.shape))
    for key in jax.random.split(jax.random.key(settings.seed + 1), runs):
        out = np.asarray(program(jax.random.split(key, len(x)), x, weights), np.float64)
        sums += out, (out - np.stack([value, grad])) ** 2
    yield _row("", "largest |z|", "largest error", "largest value", "coordinates")
    for i, (what, truth) in enumerate(((f"value: {name}", value), ("gradient: its VJP", grad))):
        error = sums[0, i] / runs - truth
        square = (sums[1, i] / runs - error**2) / (runs - 1)
        if i == 0:  # the variance is known, and the keys may have missed it
            square = np.maximum(square, variance / (settings.samples * runs))
        rounding = np.finfo(np.float32).eps * np.abs(truth).max()
        z = (np.abs(error) / np.sqrt(square + rounding**2))[judged[i]]
        most = f"{z.max():.2f}" if z.size else "too few events"
        sizes = (f"{np.abs(a).max():.2g}" for a in (error, truth))
        yield _row(what, most, *sizes, str(z.size))
        if z.size and not z.max() < _Z:
            raise WrongResult(f"the {what} of {task.name} is {most} standard errors off")


def _costs(what: str, programs: dict[str, jax.stages.Compiled], args) -> Iterator[str]:
    """Times, and peaks of memory beside arguments and results, with ratios to perturbk's."""
    calls = {name: functools.partial(program, *args) for name, program in programs.items()}
    times = measure.alternate(calls, seconds=1)
    cells = []
    for name in programs:
        ratio = f" ({times.ratio(name, 'perturbk'):.1f}x)" if name != "perturbk" else ""
        cells.append(f"{times.median(name) * 1e3:.2f} ms{ratio}")
    yield _row(f"{what}, time", *cells)
    memory = {name: measure.temp_bytes(program) for name, program in programs.items()}
    cells = []
    for name, size in memory.items():
        ratio = f" ({size / max(1, memory['perturbk']):.1f}x)" if name != "perturbk" else ""
        cells.append(f"{size / 1e6:.2f} MB{ratio}")
    yield _row(f"{what}, memory", *cells)


def _differences(grads: dict[str, jax.stages.Compiled], args, settings: Settings) -> Iterator[str]:
    """Largest differences from the others' results under the same key."""
    ours, *others = (program(*args) for program in grads.values())
    # Up to rounding; by which, in a few samples of N, a near tie may fall the other way.
    tolerance = 1e-5 + 10 / settings.samples
    for i, what in enumerate(("value", "gradient")):
        cells = [""]
        for name, theirs in zip(list(grads)[1:], others, strict=True):
            difference, largest = measure.max_difference(ours[i], theirs[i])
            cells.append(f"{difference:.1e} of {largest:.2g}")
            if not difference <= tolerance * largest:
                raise WrongResult(f"the {what} differs from that of {name} by {cells[-1]}")
        yield _row(f"{what}, difference", *cells)


def _row(head: str, *cells: str) -> str:
    return (f"  {head:28s}" + "".join(f"{cell:>19s}" for cell in cells)).rstrip()
