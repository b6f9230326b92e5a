"""The plan of one call: for each output leaf, which kernel it takes, and if none, why."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from perturbk.distributions import Noise, known_name
from perturbk.implementations import FUSED
from perturbk.jaxprs import Traced
from perturbk.kernels.streams import STREAMS
from perturbk.kernels.tuning import TUNING
from perturbk.recognise import Match, Miss, recognise

_LARGEST_LEAF = 1 << 32  # elements; counters beyond it need a second word


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is static in one call; equal plans compile to one program.

    Attributes:
        traced: `fun` as a jaxpr.
        outputs: per output leaf a `Match` (fused kernel) or a `Miss` (general path).
        noise: the noise that the kernels draw from counters, or None to call `noise_object`.
        noise_object: the user's noise.
        why_drawn: why the noise is not drawn from counters; empty if it is.
        in_blocks: whether drawing sample by sample gives the same numbers as all at once.
        num_samples, use_baseline, implementation, rng: as passed.
    """

    traced: Traced
    outputs: tuple[Match | Miss, ...]
    noise: str | None
    noise_object: Noise
    why_drawn: str
    in_blocks: bool
    num_samples: int
    use_baseline: bool
    implementation: str | None
    rng: str

    def keeps_samples(self, size: int) -> bool:
        """Whether the general path, if all is on it, keeps its samples of `size` variates each."""
        if len(self.general) < len(self.outputs) or self.implementation in FUSED:
            return False
        return self.num_samples * size <= TUNING.kept_most

    @property
    def general(self) -> tuple[int, ...]:
        """Indices of the output leaves that take the general path."""
        return tuple(i for i, out in enumerate(self.outputs) if isinstance(out, Miss))


def make_plan(
    traced: Traced,
    leaves: list[jax.Array],
    key: jax.Array,
    noise_object: Noise,
    num_samples: int,
    use_baseline: bool,
    implementation: str | None,
    rng: str,
) -> Plan:
    """Chooses the path of each output leaf.

    Raises:
        NotImplementedError: a kernel implementation or a stream was named that cannot draw this
            noise.
    """
    generator = str(jax.random.key_impl(key))
    noise = known_name(noise_object)
    why = _why_drawn(noise, noise_object, generator if rng == "jax" else None, leaves)
    if why:
        noise = None
        if rng != "jax":
            raise NotImplementedError(f"rng={rng!r} cannot run this call: {why}. Use rng='jax'.")
        if implementation in FUSED:
            raise NotImplementedError(
                f"implementation={implementation!r} cannot run this call: {why}. Use "
                "implementation=None or 'xla'."
            )
        outputs = tuple(Miss(why) for _ in traced.out_avals)
    else:
        outputs = recognise(traced, len(leaves))
        if not STREAMS[rng](1).anywhere and (why := _why_no_kernel(outputs, leaves)):
            raise NotImplementedError(f"rng={rng!r} cannot run this call: {why}. Use rng='jax'.")
    return Plan(
        traced=traced,
        outputs=outputs,
        noise=noise,
        noise_object=noise_object,
        why_drawn=why,
        in_blocks=generator == "threefry2x32" and all(map(_is_static, leaves)),
        num_samples=num_samples,
        use_baseline=use_baseline,
        implementation=implementation,
        rng=rng,
    )


def _why_drawn(noise: str | None, noise_object, generator: str | None, leaves) -> str:
    """Why counters cannot give this noise; empty if they can.

    generator: the key's, of which counters have to give the numbers; None asks for no such numbers.
    """
    if noise is None:
        return f"no kernel draws {type(noise_object).__name__} noise (Gumbel and Normal have one)"
    if generator is not None and (why := _why_other_bits(noise, generator)):
        return why
    for leaf in leaves:
        if not _is_static(leaf):
            return f"a leaf of x has the symbolic shape {leaf.shape}, and kernels have static ones"
        if leaf.dtype.itemsize > 4:
            return f"a leaf of x is {leaf.dtype}, and the kernels draw float32 noise"
        if leaf.size >= _LARGEST_LEAF:
            return f"a leaf of x has {leaf.size} elements, and 32-bit counters end at 2**32"
    return "" if leaves else "x has no leaves"


def _why_no_kernel(outputs: tuple[Match | Miss, ...], leaves) -> str:
    """Why not every output has a kernel along the last axis of its leaf; empty if all have."""
    for i, out in enumerate(outputs):
        if isinstance(out, Miss):
            return f"only kernels draw by it, and output {i} has none: {out.reason}"
        if out.op.axis != leaves[out.leaf].ndim - 1:
            return f"it draws for ops along the last axis, and output {i} is one along another"
    return ""


def _is_static(leaf: jax.Array) -> bool:
    """Whether the shape is known; `jax.export` may leave it open."""
    return all(isinstance(n, int) for n in leaf.shape)


def _why_other_bits(noise: str, generator: str) -> str:
    """Why jax.random does not make its numbers as the kernels do; empty if it does."""
    if generator != "threefry2x32":
        return f"the key's generator is {generator!r}, and only 'threefry2x32' has a kernel"
    config: Any = jax.config  # its attributes are set at run time, unseen by type checkers
    if not config.jax_threefry_partitionable:
        return "jax_threefry_partitionable is off, which changes every random number"
    if noise == "gumbel" and config.jax_high_dynamic_range_gumbel:
        return "jax_high_dynamic_range_gumbel is on, which draws two words for each variate"
    return ""


def result_dtype(leaves: list[jax.Array], out: ShapedArray) -> jnp.dtype:
    """Dtype of an output leaf: that of `fun`, promoted with the weights', which follow x."""
    return jnp.result_type(*leaves, out.dtype) if leaves else jnp.result_type(out.dtype, 1.0)
