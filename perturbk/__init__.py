"""Perturbed optimizers for JAX: a faster drop-in for `optax.perturbations`."""

from perturbk.distributions import Gumbel, Noise, Normal
from perturbk.explain import Explanation, LeafExplanation, explain
from perturbk.ops import argmax_one_hot, ranking, top_k
from perturbk.perturbed import PerturbedFunction, make_perturbed_fun

__all__ = [
    "Explanation",
    "Gumbel",
    "LeafExplanation",
    "Noise",
    "Normal",
    "PerturbedFunction",
    "argmax_one_hot",
    "explain",
    "make_perturbed_fun",
    "ranking",
    "top_k",
]
