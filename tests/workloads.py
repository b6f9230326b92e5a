"""The one list of workloads: tests and benchmarks draw their shapes from here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from optax import perturbations

# As users write them; perturbk's own functions are not used.
FUNS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "argmax": lambda x: jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1]),
    "ranking": lambda x: jnp.argsort(jnp.argsort(x, axis=-1), axis=-1),
    "sort": lambda x: jnp.sort(x, axis=-1),
    "top_k": lambda x: jax.nn.one_hot(jax.lax.top_k(x, 5)[1], x.shape[-1]).sum(-2),
    "general": lambda x: (x > jnp.mean(x, -1, keepdims=True)).astype(x.dtype),
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """One perturbed function at one size.

    Attributes:
        op: "argmax", "ranking", "sort", "top_k" with k = 5, or "general", a function that no kernel
            knows.
        batch, d: x is [batch, d], or [d] if batch is 1; fun works along d.
        num_samples, sigma: as for `make_perturbed_fun`.
        batching: "vmap" gives each row its key, "call" passes all rows under one key.
        noise: "Gumbel" or "Normal".
    """

    op: str
    batch: int
    d: int
    num_samples: int
    sigma: float = 0.5
    batching: str = "vmap"
    noise: str = "Gumbel"

    @property
    def name(self) -> str:
        how = "-call" if self.batching == "call" else ""
        noise = "" if self.noise == "Gumbel" else f"-{self.noise.lower()}"
        return f"{self.op}-{self.batch}x{self.d}x{self.num_samples}{how}{noise}"

    @property
    def variates(self) -> int:
        return self.batch * self.d * self.num_samples

    def x(self) -> jax.Array:
        shape = (self.d,) if self.batch == 1 else (self.batch, self.d)
        return jax.random.normal(jax.random.key(1), shape)

    def key(self) -> jax.Array:
        """One key, or one for each row where rows are mapped over."""
        key = jax.random.key(2)
        return jax.random.split(key, self.batch) if self._mapped else key

    def perturbed(self, make: Callable[..., Callable]) -> Callable[..., jax.Array]:
        """What a library's `make_perturbed_fun` makes of all rows, for `key()` and `x()`."""
        noise = getattr(perturbations, self.noise)()
        f = make(FUNS[self.op], self.num_samples, self.sigma, noise)
        return jax.vmap(f) if self._mapped else f

    @property
    def _mapped(self) -> bool:
        return self.batch > 1 and self.batching == "vmap"


_SIZES = (
    (1, 5, 100),
    (1, 1000, 1000),
    (16, 100, 1000),
    (64, 1000, 200),
    (1, 100000, 200),
    (256, 128, 1000),
)

WORKLOADS: tuple[Workload, ...] = (
    *(Workload("argmax", *size) for size in _SIZES),
    Workload("argmax", 16, 100, 1000, batching="call"),
    *(Workload("ranking", 1, n, 1000, sigma=0.2) for n in (6, 64, 256)),
    Workload("ranking", 1, 1024, 200, sigma=0.2),
    # Not (16, 100, 1000), at which XLA of jax 0.10 gets the gradients of optax wrong on a CPU, of
    # sorts and of top-ks.
    *(Workload("sort", *size) for size in ((1, 64, 1000), (64, 100, 300), (1, 1024, 200))),
    Workload("top_k", 1, 1000, 1000),
    Workload("top_k", 64, 100, 300),
    *(Workload("general", *size) for size in _SIZES),
    *(Workload("argmax", *size, noise="Normal") for size in _SIZES[:4]),
    Workload("ranking", 1, 64, 1000, sigma=0.2, noise="Normal"),
    *(Workload("general", *size, noise="Normal") for size in _SIZES[:3]),
    # Some thousand variates: enough for a second thread, whose start takes longer than the call.
    *(Workload("argmax", *size) for size in ((1, 2, 784), (1, 20, 100), (1, 10, 800))),
    Workload("top_k", 1, 521, 11),
    Workload("general", 1, 3, 1731),
)
