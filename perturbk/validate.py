"""Checks of what a caller passes. Every error names the argument, what came and the remedy."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path

from perturbk.implementations import IMPLEMENTATIONS
from perturbk.kernels.streams import STREAMS


def check_options(fun, num_samples, noise, implementation, rng) -> int:
    """Checks what does not depend on x; returns num_samples as an int."""
    if not callable(fun):
        raise TypeError(f"fun must be callable, got {fun!r}.")
    for method in ("sample", "log_prob"):
        if not callable(getattr(noise, method, None)):
            raise TypeError(
                f"noise must have the methods sample(key, shape, dtype) and log_prob(z), but "
                f"{noise!r} has no {method}. Pass an object such as perturbk.Gumbel() or "
                "perturbk.Normal() (an instance, not the class)."
            )
    if isinstance(noise, type):
        raise TypeError(f"noise must be an instance, got the class; pass {noise.__name__}().")
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be None or one of {list(IMPLEMENTATIONS)}, "
            f"got {implementation!r}."
        )
    if rng not in STREAMS:
        raise ValueError(f"rng must be one of {list(STREAMS)}, got {rng!r}.")
    try:
        if isinstance(num_samples, bool | np.bool_):
            raise TypeError
        count = operator.index(num_samples)
    except TypeError:
        raise TypeError(
            f"num_samples must be a static Python int, got {num_samples!r}. Under jit, close over "
            "it or mark it static."
        ) from None
    if count < 1:
        raise ValueError(f"num_samples must be at least 1, got {count}.")
    return count


def check_sigma(sigma) -> jax.Array | float:
    """sigma as a float or a floating array; concrete values must be finite and positive."""
    try:
        dtype = jnp.asarray(sigma).dtype
    except (TypeError, ValueError):
        raise TypeError(f"sigma must be a real number or array, got {sigma!r}.") from None
    if not jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"sigma must be a real number or array, got dtype {dtype}.")
    if isinstance(sigma, int):
        sigma = float(sigma)
    elif not isinstance(sigma, float):
        sigma = jnp.asarray(sigma)
        if not jnp.issubdtype(sigma.dtype, jnp.floating):
            sigma = sigma.astype(float)
    if not isinstance(sigma, Tracer):
        value = np.asarray(sigma, np.float64)
        if not (np.isfinite(value).all() and (value > 0).all()):
            raise ValueError(
                f"sigma must be positive and finite, got {sigma}. For no smoothing at all, call "
                "fun itself."
            )
    return sigma


def check_key(key) -> jax.Array:
    """The key as one typed key; legacy uint32 keys are wrapped in the default generator."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise ValueError(
                f"key must be one key, got an array of keys of shape {key.shape}. Map over it "
                "with jax.vmap."
            )
        return key
    if dtype != np.uint32:
        what = repr(key) if dtype is None else f"{dtype}{list(np.shape(key))}"
        raise TypeError(f"key must be a JAX random key, such as jax.random.key(0), got {what}.")
    expected = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    if np.shape(key) != expected:
        raise ValueError(
            f"key must be one legacy key of shape {expected} for the default generator "
            f"{jax.default_prng_impl.value!r}, got shape {np.shape(key)}. Map over several "
            "keys with jax.vmap."
        )
    return jax.random.wrap_key_data(jnp.asarray(key))


def check_leaves(x: Any, sigma) -> tuple[list[jax.Array], Any]:
    """Leaves of x as floating arrays in the dtype of a sample x + sigma z, and the tree."""
    with_paths, treedef = tree_flatten_with_path(x)
    leaves = []
    for path, leaf in with_paths:
        name = f"x{keystr(path)}"
        try:
            leaf = jnp.asarray(leaf)
        except TypeError:
            raise TypeError(f"{name} must be an array, got {leaf!r}.") from None
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{name} must have a floating dtype, got {leaf.dtype}{list(leaf.shape)}. Noise "
                "cannot be added to other values; convert it, or close over it in fun."
            )
        if leaf.size == 0:
            raise ValueError(f"{name} has an empty axis: shape {leaf.shape}.")
        _check_broadcast(np.shape(sigma), leaf.shape, name)
        leaves.append(leaf.astype(jnp.result_type(leaf, sigma)))
    return leaves, treedef


def check_output(out: Any) -> None:
    """Checks that all leaves of `fun`'s output, given as avals, are numbers."""
    for path, aval in tree_flatten_with_path(out)[0]:
        if not any(jnp.issubdtype(aval.dtype, kind) for kind in (jnp.number, jnp.bool_)):
            raise TypeError(
                f"fun must return numbers, which have a mean, got output{keystr(path)} of dtype "
                f"{aval.dtype}."
            )


def _check_broadcast(sigma_shape: tuple, shape: tuple, name: str) -> None:
    try:
        fits = jnp.broadcast_shapes(sigma_shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"sigma must be a scalar or broadcast to every leaf of x, got sigma of shape "
            f"{sigma_shape} for {name} of shape {shape}."
        )
