"""Noise distributions, with optax's interface: `sample` and an unnormalised `log_prob`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike


@runtime_checkable
class Noise(Protocol):
    """What `make_perturbed_fun` asks of a noise object; both methods are elementwise."""

    def sample(
        self, key: jax.Array, sample_shape: Sequence[int] = (), dtype: DTypeLike = float
    ) -> jax.Array: ...

    def log_prob(self, inputs: jax.Array) -> jax.Array: ...


class Gumbel:
    """Standard Gumbel noise, density exp(-z - exp(-z)).

    The perturbed argmax of x is then a sample of softmax(x / sigma).

    Example:
        >>> import jax, perturbk
        >>> perturbk.Gumbel().sample(jax.random.key(0), (2,)).shape
        (2,)
    """

    def sample(
        self, key: jax.Array, sample_shape: Sequence[int] = (), dtype: DTypeLike = float
    ) -> jax.Array:
        """Draws `sample_shape` variates of `dtype` with `jax.random.gumbel`."""
        return jax.random.gumbel(key, sample_shape, dtype)

    def log_prob(self, inputs: ArrayLike) -> jax.Array:
        """Log density, elementwise."""
        return -jnp.asarray(inputs) - jnp.exp(-jnp.asarray(inputs))


class Normal:
    """Standard normal noise; `log_prob` omits the constant.

    Example:
        >>> import perturbk
        >>> float(perturbk.Normal().log_prob(2.0))
        -2.0
    """

    def sample(
        self, key: jax.Array, sample_shape: Sequence[int] = (), dtype: DTypeLike = float
    ) -> jax.Array:
        """Draws `sample_shape` variates of `dtype` with `jax.random.normal`."""
        return jax.random.normal(key, sample_shape, dtype)

    def log_prob(self, inputs: ArrayLike) -> jax.Array:
        """Log density up to a constant, elementwise."""
        return -0.5 * jnp.asarray(inputs) ** 2


_KNOWN = {Gumbel: "gumbel", Normal: "normal"}
_OPTAX = {"Gumbel": "gumbel", "Normal": "normal"}


def known_name(noise: Noise) -> str | None:
    """Name of the noise in `perturbk.kernels.noise.NOISES`, or None if the kernels lack it.

    Ours and optax's own classes are known (optax is not imported for it). A subclass or an instance
    may have changed either method, so only the classes themselves count.
    """
    cls = type(noise)
    if getattr(noise, "__dict__", None):
        return None
    if cls in _KNOWN:
        return _KNOWN[cls]
    if cls.__module__ == "optax.perturbations._make_pert":
        return _OPTAX.get(cls.__name__)
    return None
