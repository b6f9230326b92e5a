"""`explain`: which implementation and kernel each output leaf of a perturbed function takes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.extend
from jax.tree_util import keystr, tree_flatten_with_path

from perturbk.implementations import PLATFORMS, check, choose
from perturbk.kernels.streams import STREAMS
from perturbk.perturbed import PerturbedFunction
from perturbk.recognise import Match


@dataclasses.dataclass(frozen=True)
class LeafExplanation:
    """How one output leaf is computed.

    Attributes:
        path: the leaf within the output, empty if the output is one array.
        implementation: "xla", "pallas" or "triton".
        kernel: the fused kernel, such as "argmax_gumbel"; None on the general path, which
            evaluates `fun` in blocks of samples.
        reason: for a kernel, why this implementation; on the general path, why no kernel fits.
    """

    path: str
    implementation: str
    kernel: str | None
    reason: str

    def __str__(self) -> str:
        kernel = f"kernel {self.kernel}" if self.kernel else "general path"
        return f"output{self.path}: {self.implementation}, {kernel}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` returns; its `str` has a line for each output leaf."""

    platform: str
    leaves: tuple[LeafExplanation, ...]

    def __str__(self) -> str:
        return "\n".join([f"on {self.platform}:", *(f"  {leaf}" for leaf in self.leaves)])


def explain(
    f: PerturbedFunction, x: Any, *, key: jax.Array | None = None, platform: str | None = None
) -> Explanation:
    """Says how `f(key, x)` is computed: for each output leaf, by which kernel, and why.

    Args:
        f: from `make_perturbed_fun`.
        x: the argument; arrays or `jax.ShapeDtypeStruct`s, since only shapes and dtypes matter.
        key: a key of the kind that will be used; by default one of JAX's default kind.
        platform: "cpu", "cuda", "rocm" or "tpu"; by default that of JAX's default device. The
            choice is made when a program is lowered, so the others may be asked for as well.

    Raises:
        TypeError: f is not from `make_perturbed_fun`.
        ValueError: no such platform.
        NotImplementedError: f names an implementation that cannot run this call.

    Example:
        >>> import jax.numpy as jnp, perturbk
        >>> f = perturbk.make_perturbed_fun(lambda x: (perturbk.ranking(x), jnp.cumsum(x)))
        >>> print(perturbk.explain(f, jnp.zeros(5), platform="cpu"))
        on cpu:
          output[0]: xla, kernel ranking_gumbel: Pallas has no compiled CPU backend
          output[1]: xla, general path: not a known argmax, ranking, sort or top-k: cumsum
    """
    if not isinstance(f, PerturbedFunction):
        raise TypeError(f"f must come from perturbk.make_perturbed_fun, got {f!r}.")
    if platform is None:
        default: str = jax.extend.backend.get_backend().platform
        platform = {"gpu": "cuda"}.get(default, default)
    if platform not in PLATFORMS:
        raise ValueError(f"platform must be one of {list(PLATFORMS)}, got {platform!r}.")
    if key is None:
        key = jax.random.key(0)
    found = []

    def planned(x: Any) -> Any:
        plan, out_tree, (_, leaves, *_) = f.plan(key, x)
        found.append((plan, [leaf.shape for leaf in leaves]))
        return jax.tree.unflatten(out_tree, [0] * out_tree.num_leaves)

    out = jax.eval_shape(planned, x)
    plan, shapes = found[0]
    explained = []
    for (path, _), match in zip(tree_flatten_with_path(out)[0], plan.outputs, strict=True):
        if isinstance(match, Match):
            name, why = plan.implementation, "named by the caller"
            shape = shapes[match.leaf]
            d, stream = shape[match.op.axis], STREAMS[plan.rng](shape[-1])
            if name is None:
                sizes = dict(rows=math.prod(shape) // max(1, d), num_samples=plan.num_samples)
                name, why = choose(platform, match.op.name, d, stream=stream, **sizes)
            check(name, platform, match.op.name, d, stream)
            kernel = f"{match.op.name}_{plan.noise}"
            kernel += "" if plan.rng == "jax" else f"_{plan.rng}"
        else:
            name, why, kernel = plan.implementation or "xla", match.reason, None
        explained.append(LeafExplanation(keystr(path), name, kernel, why))
    return Explanation(platform, tuple(explained))
