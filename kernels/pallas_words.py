"""The words of the samples in a fused kernel: those of each, or what is made of the first's."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from perturbk.kernels.blocks import pad_to
from perturbk.kernels.streams import Counter, Stream


class SampleWords:
    """An operand of kernels whose programs take a run of so many samples each.

    Args:
        keys: uint32 [groups, words, N].
        padded: a multiple of `run`, and at least N.
    """

    def __init__(self, keys: jax.Array, stream: Stream, padded: int, run: int):
        self.steps, self.count, self.run = stream.steps, keys.shape[1], run
        self.operand = keys[:, :, :1] if self.steps else pad_to(keys, padded, 2)

    def spec(self, group_and_run: Callable[..., tuple[object, object]]) -> pl.BlockSpec:
        """group_and_run: of a program, from its place in the grid."""

        def index(*place):
            group, run = group_and_run(*place)
            return group, 0, 0 if self.steps else run

        return pl.BlockSpec((None, self.count, 1 if self.steps else self.run), index)

    def of_run(self, ref, run) -> Callable[[pl.Slice], Counter]:
        """In the program of a run: samples of it -> their words, uint32 [1, samples] each."""

        def words(lane: pl.Slice) -> Counter:
            if not self.steps:
                return tuple(ref[i : i + 1, lane] for i in range(self.count))
            sample = lax.broadcasted_iota(jnp.int32, (1, lane.size), 1)
            sample = (sample + (run * np.int32(self.run) + lane.start)).astype(jnp.uint32)
            first = (jnp.broadcast_to(ref[i, 0], sample.shape) for i in range(self.count))
            return tuple(
                word + np.uint32(step) * sample if step else word
                for word, step in zip(first, self.steps, strict=True)
            )

        return words
