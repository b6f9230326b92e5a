"""The programs that are checked and timed on a GPU: every primitive by every implementation."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from perturbk import implementations
from perturbk.kernels import triton
from perturbk.kernels.noise import NOISES
from perturbk.kernels.ops import OPS, SIZED_OPS, op_math, sized
from perturbk.kernels.sorting import IN_ORDER
from perturbk.kernels.streams import STREAMS

_K, _VECTORS = 5, 4  # as in gpu_instructions.py
_OF_OPS = "samples", "samples_and_dot", "op_sum", "op_dot"
_OF_SCORE = "score_dot", "score_sum"
_FIRST, _PLAIN = ("samples", "score_sum"), ("", "argmax")
_VARIANTS = {*IN_ORDER, sized("top_k_indices", _K)} - {"ranking", "sort"}
ANYWHERE = [rng for rng in STREAMS if STREAMS[rng](1).anywhere]


@dataclasses.dataclass(frozen=True)
class Size:
    """x is [batch, d], under so many keys."""

    batch: int
    d: int
    num_samples: int
    keys: int = 1

    @property
    def variates(self) -> int:
        return self.batch * self.d * self.num_samples


@dataclasses.dataclass(frozen=True)
class Program:
    """One primitive of one op, or of the score (op ""), on noise from one stream.

    Attributes:
        vectors: that see the same noise, in a product of the score.
    """

    primitive: str
    op: str
    noise: str
    rng: str
    size: Size
    vectors: int = 1

    @property
    def name(self) -> str:
        """As in bench/results/gpu_instructions.json, without the implementation."""
        d = f"of {self.size.d}" if self.op in IN_ORDER else ""
        vectors = f"of {self.vectors} vectors" if self.vectors > 1 else ""
        rng = self.rng if self.rng != "jax" else ""
        return " ".join(filter(None, (self.op, d, self.primitive, vectors, self.noise, rng)))

    def operands(self) -> tuple[jax.Array, ...]:
        batch, d, num_samples, keys = dataclasses.astuple(self.size)
        stream, drawn, batch = STREAMS[self.rng](d), jax.random.normal, batch // keys
        of_rows = jax.random.split(jax.random.key(1), keys)
        words = jax.vmap(lambda key: stream.words(key, num_samples, 0))(of_rows)
        score = not self.op
        rows = (keys, self.vectors, batch * d) if score else (keys, 1, batch, d)
        sigma = jnp.full((1,) * len(rows), 0.5)
        found = (words, drawn(jax.random.key(2), rows), sigma)
        if self.primitive == "samples_and_dot":
            leaf = (keys, 1, batch * d)
            t = drawn(jax.random.key(3), leaf)
            return (*found, found[1].reshape(leaf), jnp.full((1, 1, 1), 0.5), t)
        if self.primitive.endswith("dot"):
            out = d if score else op_math(self.op).out_size(d)
            shape = rows if score else (keys, 1, batch, out)
            return (*found, drawn(jax.random.key(3), shape))
        if self.primitive == "samples":
            return found
        return (*found, drawn(jax.random.key(3), (keys, self.vectors, num_samples)))

    def compiled(self, implementation: str, platform: str) -> Callable[[], Any]:
        """The program on its operands.

        Raises:
            NotImplementedError: the implementation has no such kernel.
        """
        which: dict[str, Any] = dict(op=self.op, inner=1) if self.op else dict(order=1, power=0)
        run = functools.partial(
            implementations.run,
            self.primitive,
            platform,
            implementation=implementation,
            stream=STREAMS[self.rng](self.size.d),
            noise=self.noise,
            **which,
        )
        operands = self.operands()
        return functools.partial(jax.jit(run).lower(*operands).compile(), *operands)


def implementations_here(platform: str) -> list[str]:
    """Those that this process can run."""
    return [name for name in implementations.IMPLEMENTATIONS if _runs(name, platform)]


def _runs(name: str, platform: str) -> bool:
    if name != "triton":
        return True
    try:
        triton.require()
    except ImportError:
        return False
    return platform == "cuda"


def programs(only: str, size: Size, ranked: Sequence[int]) -> list[Program]:
    """All, or those of one op; rankings of rows of these lengths, as many variates."""
    others = [op for op in OPS if op not in IN_ORDER] + [sized(name, _K) for name in SIZED_OPS]
    sizes = {op: [size] for op in others}
    rows = {d: max(1, size.batch * size.d // d) for d in ranked}
    in_order = [dataclasses.replace(size, batch=batch, d=d) for d, batch in rows.items()]
    sizes |= dict.fromkeys(IN_ORDER, in_order)
    found = []
    for rng, noise in itertools.product(ANYWHERE, NOISES):
        for op in (op for op in sizes if only in ("", op)):
            for primitive, of_size in itertools.product(_OF_OPS, sizes[op]):
                found.append(Program(primitive, op, noise, rng, of_size))
        if not only:
            for primitive, vectors in itertools.product(_OF_SCORE, (1, _VECTORS)):
                found.append(Program(primitive, "", noise, rng, size, vectors))
    return [program for program in found if _differs(program)]


def _differs(program: Program) -> bool:
    """Whether its kernel is not made of the parts of others, which makes one of its kind enough."""
    one = program.primitive in _FIRST
    if program.rng == "threefry_pair":  # a stream for TPUs
        return one and program.op in _PLAIN and program.noise == "gumbel"
    if program.op in _VARIANTS:
        return one and (program.noise, program.rng) == ("gumbel", "jax")
    return program.noise == "gumbel" or program.op in _PLAIN or (one and program.rng == "jax")
