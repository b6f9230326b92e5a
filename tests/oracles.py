"""Answers that do not come from perturbk: closed forms, and the estimator in numpy float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import numpy as np
from scipy import special, stats

NOISE_SAMPLERS = {"Gumbel": jax.random.gumbel, "Normal": jax.random.normal}


def score(noise: str, z: np.ndarray) -> np.ndarray:
    """-d log density / dz."""
    return 1 - np.exp(-z) if noise == "Gumbel" else z


def draw(noise: str, key: jax.Array, shape: tuple[int, ...], num_samples: int) -> np.ndarray:
    """The standard noise of one leaf, float64 [N, *shape]."""
    sampler = NOISE_SAMPLERS[noise]

    def one(sample_key):
        return sampler(jax.random.split(sample_key, 1)[0], shape)

    z = jax.jit(jax.vmap(one))(jax.random.split(key, num_samples))
    return np.asarray(z, np.float64)


def sample_terms(fun: Callable, noise: str, key, x, num_samples: int, sigma: float):
    """What the estimator averages, with the baseline, for one vector x.

    Returns:
        value terms [N, out], terms of the Jacobian in x [N, out, d], and of the derivative in
        sigma [N, out].
    """
    x = np.asarray(x, np.float64)
    z = draw(noise, key, x.shape, num_samples)
    f = fun(x + sigma * z)
    centred, s = f - fun(x), score(noise, z)
    in_sigma = np.sum(s * z - 1, -1)
    return f, centred[..., None] * s[:, None] / sigma, centred * in_sigma[:, None] / sigma


def z_score(estimate: np.ndarray, exact: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """(estimate - exact) in standard errors of the mean of `terms` over axis 0."""
    error = np.std(terms, 0, ddof=1) / np.sqrt(len(terms))
    return (np.asarray(estimate, np.float64) - exact) / error


def argmax_one_hot(x: np.ndarray) -> np.ndarray:
    return np.eye(x.shape[-1])[np.argmax(x, -1)]


def ranks(x: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(x, -1, kind="stable"), -1).astype(np.float64)


def top_k(x: np.ndarray, k: int, *, indices: bool = False) -> np.ndarray:
    """The k largest float32 along the last axis in IEEE's total order, as a mask or in order."""
    bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
    key = np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)
    best = np.argsort(-key, -1, kind="stable")[..., :k]
    return best if indices else np.eye(np.shape(x)[-1])[best].sum(-2)


def plackett_luce(x: np.ndarray, k: int, sigma: float) -> dict[tuple[int, ...], float]:
    """Probability of each ordered k winners under Gumbel noise."""
    w = np.exp(np.asarray(x, np.float64) / sigma)
    found = {}
    for winners in itertools.permutations(range(len(w)), k):
        left = w.sum() - np.concatenate([[0], np.cumsum(w[list(winners)])[:-1]])
        found[winners] = np.prod(w[list(winners)] / left)
    return found


def expected_top_k(x: np.ndarray, k: int, sigma: float, *, indices: bool = False) -> np.ndarray:
    """Inclusion probabilities, or expected indices, of the k largest under Gumbel noise."""
    n = len(x)
    found = plackett_luce(x, k, sigma).items()
    return sum(p * (np.array(ws) if indices else np.eye(n)[list(ws)].sum(0)) for ws, p in found)


def expected_top_k_jacobian(x, k: int, sigma: float, *, indices: bool = False) -> np.ndarray:
    """By central differences in float64: to 1e-9."""
    x, h = np.asarray(x, np.float64), 1e-5
    up, down = (
        [expected_top_k(x + s * e, k, sigma, indices=indices) for e in np.eye(len(x))]
        for s in (h, -h)
    )
    return (np.transpose(up) - np.transpose(down)) / (2 * h)


def softmax(x: np.ndarray, sigma: float) -> np.ndarray:
    """Expected one-hot argmax under Gumbel noise."""
    return special.softmax(np.asarray(x, np.float64) / sigma)


def softmax_jacobian(x: np.ndarray, sigma: float) -> np.ndarray:
    p = softmax(x, sigma)
    return (np.diag(p) - np.outer(p, p)) / sigma


def softmax_in_sigma(x: np.ndarray, sigma: float) -> np.ndarray:
    return -softmax_jacobian(x, sigma) @ np.asarray(x, np.float64) / sigma


def _differences(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x[:, None] - x[None, :]


def expected_ranks(noise: str, x: np.ndarray, sigma: float) -> np.ndarray:
    """Sum over the others of the probability that they come first."""
    d = _differences(x) / sigma
    below = special.expit(d) if noise == "Gumbel" else stats.norm.cdf(d / np.sqrt(2))
    return below.sum(1) - 0.5  # an entry does not precede itself


def expected_ranks_jacobian(noise: str, x: np.ndarray, sigma: float) -> np.ndarray:
    d = _differences(x) / sigma
    if noise == "Gumbel":
        density = special.expit(d) * special.expit(-d)
    else:
        density = stats.norm.pdf(d / np.sqrt(2)) / np.sqrt(2)
    density = density / sigma
    return np.diag(density.sum(1)) - density
