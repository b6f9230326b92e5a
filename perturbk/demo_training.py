"""What the demonstration trains: a classifier through a perturbed argmax, a ranker through ranks.

Both models are linear and both losses are squared distances between the perturbed output and the
label, which without perturbation would have a gradient of zero almost everywhere. Every row (an
image; a list of wines) has its own key: under one key, the gradient of a row would carry the noise
of all others.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import perturbk

_IMAGES = 128  # of one training step
_LISTS, _WINES = 16, 32  # lists of one training step, and wines in a list
_RATE = 0.03  # of Adam, for outputs in units of sigma


@dataclasses.dataclass(frozen=True)
class Task:
    """What was trained, for the comparison that follows.

    Attributes:
        name: of the op, for the reader.
        perturbed: f(key, row), as trained.
        fun: what it perturbs.
        x: float32 [rows, d], outputs of the trained model on held-out data.
        rows: what the rows are, for the reader.
        before, after: quality on held-out data.
    """

    name: str
    perturbed: perturbk.PerturbedFunction
    fun: Callable[[jax.Array], jax.Array]
    x: jax.Array
    rows: str
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of the demonstration, see `python -m perturbk --help`."""

    samples: int
    sigma: float
    steps: int
    seed: int
    implementation: str | None

    def perturb(self, fun: Callable[[jax.Array], jax.Array]) -> perturbk.PerturbedFunction:
        return perturbk.make_perturbed_fun(
            fun, self.samples, self.sigma, implementation=self.implementation
        )


def classify_digits(settings: Settings) -> Task:
    """Recognises handwritten digits: the class is the argmax of ten linear outputs."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(settings.seed).permutation(len(labels))
    images = jnp.asarray(images[order] / 16, jnp.float32)
    labels = jax.nn.one_hot(labels[order], 10)
    held_out = len(order) // 4
    f = settings.perturb(perturbk.argmax_one_hot)
    print(
        f"Argmax. Digits: {len(order) - held_out} images to learn from, {held_out} held out; the "
        "class is the argmax of ten linear outputs.\n"
        "The loss is the squared distance of the perturbed one-hot argmax from the label."
    )

    def outputs(params: dict[str, jax.Array], images: jax.Array) -> jax.Array:
        return images @ params["weights"] + params["bias"]

    def loss(params: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        pick, noise = jax.random.split(key)
        batch = held_out + jax.random.randint(pick, (_IMAGES,), 0, len(images) - held_out)
        guess = jax.vmap(f)(jax.random.split(noise, _IMAGES), outputs(params, images[batch]))
        return jnp.mean(jnp.sum((guess - labels[batch]) ** 2, -1))

    def quality(params: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        right = jnp.argmax(outputs(params, images), -1) == jnp.argmax(labels, -1)
        return jnp.mean(right[held_out:]), jnp.mean(right[:held_out])

    start = {"weights": jnp.zeros((images.shape[1], 10)), "bias": jnp.zeros(10)}
    params, before, after = _train("accuracy", loss, quality, start, settings)
    rows = slice(64)
    return Task(
        "argmax",
        f,
        perturbk.argmax_one_hot,
        outputs(params, images[rows]),
        "held-out digits",
        before,
        after,
    )


def rank_wines(settings: Settings) -> Task:
    """Ranks wines by the intensity of their colour, from twelve other measurements of each."""
    from sklearn import datasets

    data: Any = datasets.load_wine()
    name = "color_intensity"
    column = data.feature_names.index(name)
    rng = np.random.default_rng(settings.seed)
    table = data.data[rng.permutation(len(data.data))]
    colour = jnp.asarray(table[:, column], jnp.float32)
    others = np.delete(table, column, 1)
    others = jnp.asarray((others - others.mean(0)) / others.std(0), jnp.float32)
    held_out = len(table) // 3
    f = settings.perturb(perturbk.ranking)
    print(
        f"Ranking. Wines: {len(table) - held_out} to learn from, {held_out} held out; ranked by "
        f"{name}, from a linear score of {others.shape[1]} other measurements.\n"
        f"The loss is 1 - Spearman's correlation of the perturbed ranks, in lists of {_WINES}."
    )

    def spearman(ranks: jax.Array, colour: jax.Array) -> jax.Array:
        n = colour.shape[-1]
        distance = jnp.sum((ranks - perturbk.ranking(colour)) ** 2, -1)
        return 1 - 6 * distance / (n * (n * n - 1))

    def lists(key: jax.Array, first: int, last: int, count: int) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            return first + jax.random.permutation(key, last - first)[:_WINES]

        return jax.vmap(one)(jax.random.split(key, count))

    def loss(weights: jax.Array, key: jax.Array) -> jax.Array:
        pick, noise = jax.random.split(key)
        batch = lists(pick, held_out, len(table), _LISTS)
        ranks = jax.vmap(f)(jax.random.split(noise, _LISTS), others[batch] @ weights)
        return 1 - jnp.mean(spearman(ranks, colour[batch]))

    def quality(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        learn, rest = slice(held_out, None), slice(held_out)
        got = [spearman(perturbk.ranking(others[s] @ weights), colour[s]) for s in (learn, rest)]
        return got[0], got[1]

    start = jnp.zeros(others.shape[1])
    weights, before, after = _train("Spearman", loss, quality, start, settings)
    batch = lists(jax.random.key(settings.seed), 0, held_out, _LISTS)
    return Task(
        "ranking",
        f,
        perturbk.ranking,
        others[batch] @ weights,
        "lists of held-out wines",
        before,
        after,
    )


def _train(
    what: str, loss: Callable, quality: Callable, params: Any, settings: Settings
) -> tuple[Any, float, float]:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980); prints its progress.

    Returns:
        (trained parameters, held-out quality before, and after).
    """
    # The models are linear, so that outputs, parameters and steps all scale with sigma.
    rate = _RATE * settings.sigma

    @jax.jit
    def step(state: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        params, mean, square = state
        key = jax.random.fold_in(jax.random.key(settings.seed), i)
        value, grad = jax.value_and_grad(loss)(params, key)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grad)
        square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * g**2, square, grad)

        def moved(p: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
            root = jnp.sqrt(s / (1 - 0.99 ** (i + 1)))
            return p - rate * m / (1 - 0.9 ** (i + 1)) / (root + 1e-8)

        return (jax.tree.map(moved, params, mean, square), mean, square), value

    judge = jax.jit(quality)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = (params, zeros, zeros)
    start = time.perf_counter()
    before = float(judge(params)[1])
    every = -(-settings.steps // 5)
    for i in range(settings.steps + 1):
        stepped, value = step(state, jnp.int32(i))
        if i % every == 0 or i == settings.steps:
            learnt, held_out = map(float, judge(state[0]))
            print(
                f"  step {i:4d}   loss {float(value):6.3f}   {what}: {learnt:6.3f} learnt, "
                f"{held_out:6.3f} held out   {time.perf_counter() - start:5.1f} s",
                flush=True,
            )
        if i < settings.steps:
            state = stepped
    return state[0], before, float(judge(state[0])[1])
