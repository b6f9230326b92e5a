"""The k largest as a race: quick arithmetic for each variate, and a proof of who has won.

The race is run with values that are nearly, or bounds of, those that are to be compared. When it is
over, the k fours of coordinates in front are drawn again and compared exactly; if the k-th best of
them is ahead of the values of all others by more than the errors of either order, they have won. If
not, one four more is drawn, for a close second is in doubt: of 128 samples with a thousand
coordinates one in 6% of the tiles (Gumbel). If that does not settle it, this tile of samples is
compared exactly. So the winners are those of `pallas_argmax` and `pallas_topk`, always.

Normal variates race as x + sigma z, with a z that is near (`NoiseMath.near`). Gumbel variates z
take two logarithms, and the race one: with E = exp(-z), the order of x + sigma z is that of E w,
w = exp((x_k - x)/sigma), the smallest first; x_k is the k-th largest x. Its values are bounds of E:
let u = exp(-E). The stream gives a number from u + 2^-22 to u + 2^-21 (`NoiseMath.above`). Its
quick binary logarithm errs by 2^-22, absolutely above one half and relatively below, and is still
above log2(u): there a step of 2^-22 changes it by more, since -v log(v) < 1 for all v.

So the race takes 23 bits of a word. A tail of all 32, as Philox's noise has, is drawn for those in
front only, and adds nothing to the loop.
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

from perturbk.kernels.draws import Draws
from perturbk.kernels.machine import Machine
from perturbk.kernels.noise import NEAR, NoiseMath
from perturbk.kernels.pallas_rows import (
    Aid,
    Pair,
    Part,
    column_at,
    fill_to,
    in_fours,
    insert,
    summed,
)
from perturbk.kernels.streams import Drawn
from perturbk.kernels.tuning import TUNING

_LOG2_E = np.float32(np.log2(np.e))
# z is between -4.5 and 23, and k values are x_k or more. Who is further behind, in sigmas, has no
# chance to come before the k-th winner.
_BEHIND, _NO_CHANCE = np.float32(28), np.float32(2.0**100)
# Relative rounding of E w in either order, if |x_k| < sigma: z to 2^-18, exponents to 2^-18.
_ROUNDING = np.float32(2.0**-15)
# Errors of x + sigma z in either order: in sigmas, that of z and the rounding of sigma z, for z is
# below 7; and the rounding of the sum, relative to it.
_MARGIN, _OF_SUM = np.float32(2 * NEAR), np.float32(2.0**-21)

Limits = Sequence[jax.Array]  # what holds for all of a row


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is compared in a race of one kind of noise.

    Attributes:
        operands: (x [..., d], sigma [..., 1], k) -> (weights [..., d], limits, each [..., 1]).
        no_chance: the weight of who has none.
        marks: (draws, words of four variates) -> what the race takes of them.
        values: (marks, weights, limits, machine) -> values, of which the largest is in front.
        bound: (y, limits) -> what the values of all others must be below, if the k-th winner has y;
            NaN or -inf, below which none is, for rows that are not raced: with NaN, infinity or no
            positive sigma.
    """

    operands: Callable[..., tuple[jax.Array, Limits]]
    no_chance: np.float32
    marks: Callable[[Draws, Drawn], Sequence]
    values: Callable[[Sequence, Sequence[jax.Array], Limits, Machine], Sequence[jax.Array]]
    bound: Callable[[jax.Array, Limits], jax.Array]


def _limit(limit: jax.Array, x: jax.Array, last: jax.Array, sigma: jax.Array) -> jax.Array:
    """The limit, or infinity where a row cannot be raced."""
    settled = jnp.isfinite(jnp.max(x, -1, keepdims=True)) & jnp.isfinite(last) & (sigma > 0)
    return jnp.where(settled, limit, np.float32(np.inf))


def _last(x: jax.Array, k: int) -> jax.Array:
    """The k-th largest, [..., 1]."""
    return jnp.max(x, -1, keepdims=True) if k == 1 else lax.top_k(x, k)[0][..., -1:]


def _of_exponentials(x: jax.Array, sigma: jax.Array, k: int) -> tuple[jax.Array, Limits]:
    """w, and x_k, 1/sigma and the least relative lead of the winners."""
    last = _last(x, k)
    behind = (last - x) / sigma
    weights = jnp.where(behind < _BEHIND, jnp.exp(behind), _NO_CHANCE)
    lead = _limit(_ROUNDING + np.float32(2.0**-22) * jnp.abs(last / sigma), x, last, sigma)
    return weights, (last, 1 / sigma, lead)


def _exponential_bound(y: jax.Array, limits: Limits) -> jax.Array:
    last, per_sigma, lead = limits
    return -_LOG2_E * jnp.exp((last - y) * per_sigma) * (1 + lead)


def _of_variates(x: jax.Array, sigma: jax.Array, k: int) -> tuple[jax.Array, Limits]:
    """x, and sigma and the least lead of the winners, but for what is relative to it."""
    return x, (sigma, _limit(_MARGIN * sigma, x, _last(x, k), sigma))


# -E w / log 2, from below; and x + sigma z, nearly.
_EXPONENTIALS = Rules(
    _of_exponentials,
    _NO_CHANCE,
    lambda draws, words: tuple(draws.machine.log2(draws.math.above(bits)) for bits in words),
    lambda marks, weights, limits, machine: [w * a for w, a in zip(weights, marks, strict=True)],
    _exponential_bound,
)
_VARIATES = Rules(
    _of_variates,
    np.float32(-np.inf),
    lambda draws, words: draws.math.near(words, draws.machine),
    lambda marks, weights, limits, machine: [
        machine.fma(limits[0] * a, b, x) for x, (a, b) in zip(weights, marks, strict=True)
    ],
    lambda y, limits: y - (limits[1] + _OF_SUM * jnp.abs(y)),
)


def aid(math: NoiseMath, x: jax.Array, sigma: jax.Array, times: int, k: int) -> Aid | None:
    """What a `Race` needs, or None for rows that are not raced. All must be on one scale."""
    rules = _EXPONENTIALS if math.above else _VARIATES if math.near else None
    in_front = 4 * (k + 2)
    d, least = x.shape[-1], max(in_front, TUNING.race_least, TUNING.race_least_for_each * k)
    if rules is None or sigma.shape[-1] > 1 or not least <= d <= TUNING.race_most:
        return None
    together = times == 1 and d >= max(TUNING.race_twos_least, TUNING.race_twos_least_for_each * k)
    if together:
        several = max(TUNING.race_fours_least, TUNING.race_fours_least_for_each * k)
        fours = 4 if d >= (TUNING.race_fours_one_least if k == 1 else several) else 2
    else:
        fours = TUNING.race_piece if k <= TUNING.race_pieces_most else 1
    tile = 4 * times * fours
    weights, limits = rules.operands(x, sigma, k)
    columns = (
        in_fours(fill_to(weights, tile, rules.no_chance), tile),
        jnp.concatenate(jnp.broadcast_arrays(*limits), -1),
    )
    return Aid(columns, lambda *parts: Race(*parts, rules, tile, k, together), tile)


@dataclasses.dataclass(frozen=True)
class Race:
    """One row's race for k places.

    Attributes:
        weights_ref: `in_fours`.
        limits_ref: a column.
        rules: what is compared.
        tile: coordinates that are drawn together.
        k: places.
        together: whether all fours of a tile are in front together, and are drawn again.
    """

    weights_ref: Part
    limits_ref: Part
    rules: Rules
    tile: int
    k: int
    together: bool

    @property
    def limits(self) -> Limits:
        return [self.limits_ref[i, 0] for i in range(self.limits_ref.size)]

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

        def drawn_again(found, first):
            def four(i, found):
                for new in row.at(first + i):
                    found = insert(found, new, by_index=True)
                return found

            return lax.fori_loop(0, self.tile // 4 if self.together else 1, four, tuple(found))

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
        """Whether the first k found have won, if the values of all others are at most `other`."""
        proved = other < self.rules.bound(found[-2][0], self.limits)
        for (y, _), (following, _) in itertools.pairwise(found):
            proved &= (following < y) | (y != 0)  # some orders know -0 and +0
        return proved

    def _run(self, row, tangent_ref) -> tuple:
        """The k + 2 fours in front, or tiles, each (its largest value, its first four), and the
        product."""
        piece, limits = self.tile // 4, self.limits

        def step(t, carry):
            *best, product = carry
            four = row.cells(t, piece, 4)
            bits = row.draws.bits_four(four)
            places = [column_at(t * self.tile + i * piece, piece) for i in range(4)]
            weights = [self.weights_ref[at] for at in places]
            marks = self.rules.marks(row.draws, bits)
            a, b, c, d = self.rules.values(marks, weights, limits, row.draws.machine)
            if tangent_ref is not None:
                moments = row.draws.math.quick_moments(1)(bits, row.draws.machine)
                for at, moment in zip(places, moments, strict=True):
                    product = row.draws.machine.fma(tangent_ref[at], moment, product)
            most = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
            if self.together:
                most, four = jnp.max(most, 0, keepdims=True), row.cells(t * piece, 1, 4)
            return *insert(best, (most, four)), product

        zero = jnp.zeros((piece, row.lanes), jnp.float32)
        none = jnp.zeros((1 if self.together else piece, row.lanes), jnp.int32)
        start = *((jnp.full(none.shape, -np.inf, jnp.float32), none),) * (self.k + 2), zero
        *best, product = lax.fori_loop(0, -(-row.length // self.tile), step, start)
        if len(none) > 1:
            best = _across(best, row.d)
        return *best, summed(product)


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
