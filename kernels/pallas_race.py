"""The k largest under Gumbel noise as a race: one quick logarithm for each variate, and its proof.

With E = exp(-z), the order of x + sigma z is that of E w, w = exp((x_k - x)/sigma), the smallest
first; x_k is the k-th largest x. The race is run with lower bounds of E. When it is over, the k
fours of coordinates in front are drawn again and compared exactly; if the k-th best of them stays
below the bounds of all others, by more than the rounding of either order, they have won. If not,
one four more is drawn, for a close second is in doubt: of 128 samples with a thousand coordinates
one in 6% of the tiles. If that does not settle it, this tile of samples is compared exactly. So the
winners are those of `pallas_argmax` and `pallas_topk`, always.

A bound: let u = exp(-E). The stream gives a number from u + 2^-22 to u + 2^-21 (`NoiseMath.above`).
Its quick binary logarithm errs by 2^-22, absolutely above one half and relatively below, and is
still above log2(u): there a step of 2^-22 changes it by more, since -v log(v) < 1 for all v.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturbk.kernels.noise import NoiseMath
from perturbk.kernels.pallas_rows import Aid, Pair, column_at, fill_to, in_fours, insert
from perturbk.kernels.tuning import TUNING

_LOG2_E = np.float32(np.log2(np.e))
# z is between -4.5 and 23, and k values are x_k or more. Who is further behind, in sigmas, has no
# chance to come before the k-th winner.
_BEHIND, _NO_CHANCE = np.float32(28), np.float32(2.0**100)
# Relative rounding of E w in either order, if |x_k| < sigma: z to 2^-18, exponents to 2^-18.
_ROUNDING = np.float32(2.0**-15)


def aid(math: NoiseMath, x: jax.Array, sigma: jax.Array, times: int, k: int) -> Aid | None:
    """What a `Race` needs, or None for rows that are not raced. All must be on one scale."""
    fours = 4 * (k + 2)  # that are in front
    d, least = x.shape[-1], max(fours, TUNING.race_least, TUNING.race_least_for_each * k)
    if math.above is None or sigma.shape[-1] > 1 or not least <= d <= TUNING.race_most:
        return None
    tile = 4 * times * (TUNING.race_piece if k <= TUNING.race_pieces_most else 1)
    weights, limits = _operands(x, sigma, k)
    columns = in_fours(fill_to(weights, tile, _NO_CHANCE), tile), limits
    return Aid(columns, lambda *refs: Race(*refs, tile, k), tile)


def _operands(x: jax.Array, sigma: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Weights w [..., d] and limits [..., 4] of rows x [..., d], sigma [..., 1].

    The limits are x_k, 1/sigma and the least relative lead of the winners; it is NaN or infinite,
    which no lead satisfies, for rows that are not raced: with NaN, infinity or no positive sigma.
    """
    last = jnp.max(x, -1, keepdims=True) if k == 1 else lax.top_k(x, k)[0][..., -1:]
    behind = (last - x) / sigma
    weights = jnp.where(behind < _BEHIND, jnp.exp(behind), _NO_CHANCE)
    lead = _ROUNDING + np.float32(2.0**-22) * jnp.abs(last / sigma)
    settled = jnp.isfinite(jnp.max(x, -1, keepdims=True)) & jnp.isfinite(last) & (sigma > 0)
    lead = jnp.where(settled, lead, np.float32(np.inf))
    limits = jnp.broadcast_arrays(last, 1 / sigma, lead, jnp.zeros_like(lead))
    return weights, jnp.concatenate(limits, -1)


@dataclasses.dataclass(frozen=True)
class Race:
    """One row's race for k places: refs to weights [width, 1], `in_fours`, and limits [4, 1]."""

    weights_ref: object
    limits_ref: object
    tile: int
    k: int

    def winners(
        self, row, exactly: Callable[[], tuple[jax.Array, ...]], tangent_ref=None
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """(k winners of each sample, descending, int32; <h_1(z), t>, float32), all [1, lanes].

        Args:
            row: a `pallas_rows.Row`.
            exactly: finds the winners without a race.
            tangent_ref: t, laid out as the weights; None for zero.
        """
        *in_front, (other, _), product = self._run(row, tangent_ref)
        *in_front, (close, close_four) = in_front
        nothing = (
            jnp.full((1, row.lanes), -np.inf, jnp.float32),
            jnp.zeros((1, row.lanes), jnp.int32),
        )

        def drawn_again(found, four):
            for new in row.at(four):
                found = insert(found, new, by_index=True)
            return found

        def turn(_, carry):
            (four, *fours), found = carry
            return (*fours, four), drawn_again(found, four)

        def or_else(other: jax.Array, found: Sequence[Pair], otherwise: Callable):
            doubt = jnp.where(self._proved(found, other), np.int32(0), np.int32(1))
            winners = tuple(coordinate for _, coordinate in found[:-1])
            return lax.cond(jnp.max(jnp.max(doubt, 0)) > 0, otherwise, lambda: winners)

        start = tuple(four for _, four in in_front), (nothing,) * (self.k + 1)
        _, found = lax.fori_loop(0, self.k, turn, start)
        more = functools.partial(drawn_again, found, close_four)
        return or_else(close, found, lambda: or_else(other, more(), exactly)), product

    def _proved(self, found: Sequence[Pair], other: jax.Array) -> jax.Array:
        """Whether the first k found have won, if the bounds of all others are at most `other`."""
        last, per_sigma, lead = (self.limits_ref[i, 0] for i in range(3))
        value = -_LOG2_E * jnp.exp((last - found[-2][0]) * per_sigma)
        proved = other < value * (1 + lead)
        for (y, _), (following, _) in itertools.pairwise(found):
            proved &= (following < y) | (y != 0)  # some orders know -0 and +0
        return proved

    def _run(self, row, tangent_ref) -> tuple:
        """The k + 2 largest fours, each (its largest -E w / log 2, which four), and the product."""
        piece = self.tile // 4

        def step(t, carry):
            *best, product = carry
            four = row.cells(t, piece, 4)
            values = []
            for i, bits in enumerate(row.draws.bits_four(four)):
                at = column_at(t * self.tile + i * piece, piece)
                above = row.draws.machine.log2(row.draws.math.above(bits))
                values.append(self.weights_ref[at] * above)
                if tangent_ref is not None:
                    moment = row.draws.quick_moment(bits, 1)
                    product = row.draws.machine.fma(tangent_ref[at], moment, product)
            a, b, c, d = values
            best = insert(best, (jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d)), four))
            return *best, product

        zero = jnp.zeros((piece, row.lanes), jnp.float32)
        nothing = jnp.full(zero.shape, -np.inf), zero.astype(jnp.int32)
        start = *(nothing,) * (self.k + 2), zero
        *best, product = lax.fori_loop(0, -(-row.length // self.tile), step, start)
        if piece > 1:
            best, product = _across(best, row.d), jnp.sum(product, 0, keepdims=True)
        return *best, product


def _across(best: Sequence[Pair], d: int) -> list[Pair]:
    """As many of the largest, [1, lanes], of those of each row of the pieces, [piece, lanes]."""
    found = []
    for _ in best:
        (value, four), *_ = best
        top = jnp.max(value, 0, keepdims=True)
        at = jnp.min(jnp.where(value == top, four, d), 0, keepdims=True)
        found.append((top, at))
        is_it = (value == top) & (four == at)
        following = *best[1:], (jnp.full_like(value, -np.inf), four)
        best = [
            tuple(jnp.where(is_it, a, b) for a, b in zip(other, one, strict=True))
            for one, other in zip(best, following, strict=True)
        ]
    return found
