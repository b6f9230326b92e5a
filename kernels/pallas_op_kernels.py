"""The fused kernel of each op."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax

from perturbk.kernels import (
    pallas_argmax,
    pallas_network,
    pallas_race,
    pallas_sorted,
    pallas_topk,
)
from perturbk.kernels.noise import NoiseMath
from perturbk.kernels.ops import entry
from perturbk.kernels.pallas import Program, power_of_two
from perturbk.kernels.pallas_ranking import tile_ranks
from perturbk.kernels.pallas_rows import Aid, Row
from perturbk.kernels.ranking import DESCENDING, SORT_KEYS
from perturbk.kernels.sorting import SORTS, Sort
from perturbk.kernels.topk import total_order
from perturbk.kernels.tuning import TUNING


@dataclasses.dataclass(frozen=True)
class OpKernel:
    """What a fused kernel needs beyond `OpMath`.

    Attributes:
        summary: (row, ref to a tangent or None) -> what all of its outputs need, which is the code
            of a sample, int32 [1, lanes] of every number, or all numbers as one [tile, lanes]; and
            <h_1(z), t>, float32 [1, lanes], from the same pass over the noise. None if each tile of
            outputs is made by itself, and is the code.
        outputs: (row, summary, t) -> outputs of tile t, int32 [out_tile, lanes]. None if the
            outputs are the numbers of the summary.
        tile: most coordinates of a tile, where each sample has one thread, see `Program`; one
            coordinate, or one four, stays one where it has several.
        out_tile: most outputs of a tile, likewise.
        pieces: whether the summary takes the row in `Row.pieces` or as `Row.whole`; else it needs
            whole tiles.
        aid: (math of the noise, x, sigma) of all rows, `times` of the program -> their `Aid`, or
            None if they need none.
        best: (values of the winners of a row's pieces [..., n, lanes], in the order of coordinates;
            whether they are some, [n, 1]) -> which of them are the row's, int32 [..., *code,
            lanes]. None if a row cannot be cut into pieces.
        program: None if the number of samples decides.
        memory: words that it needs for each coordinate of a row, and for one aside, if many threads
            hold a row as one tile; 0 if each sample has one thread.
        warps: most of a program, if the number of samples decides; None for the usual.
        places: whether the numbers of the summary are the places where a code holds 0, 1, and so
            on, each of them once.
    """

    summary: Callable[..., tuple[tuple[jax.Array, ...], jax.Array]] | None
    outputs: Callable[[Row, tuple[jax.Array, ...], jax.Array], jax.Array] | None
    tile: int = TUNING.kernel_tile
    out_tile: int = TUNING.kernel_tile
    pieces: bool = False
    aid: Callable[[NoiseMath, jax.Array, jax.Array, int], Aid | None] = lambda *_: None
    best: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    program: Program | None = None
    memory: int = 0
    warps: int | None = None
    places: bool = False

    @property
    def whole(self) -> bool:
        """Whether a tile is a whole row, of which the summary is one, too."""
        return self.memory > 0


def _raced(exactly: Callable, k: int, **which) -> OpKernel:
    """The kernel of k winners: by a race, or else by exactly(row, ref to a tangent)."""

    def winners(row: Row, tangent_ref=None):
        if row.aid is None:
            return exactly(row, tangent_ref)
        return row.aid.winners(row, lambda: exactly(row, None)[0], tangent_ref)

    return OpKernel(winners, pieces=True, aid=functools.partial(pallas_race.aid, k=k), **which)


def _ranking(op: str) -> Callable[[int], OpKernel]:
    """d -> the kernel of a ranking."""
    sort_key, descending = SORT_KEYS[op], op in DESCENDING
    count = tile_ranks(sort_key)
    tile = TUNING.kernel_ranking_tile
    by_counting = OpKernel(None, lambda row, _, t: count(row, t), tile, tile)
    by_network = _of_one_thread(
        pallas_network.places(sort_key, descending=descending),
        aid=pallas_network.aid,
        places=True,
    )

    def of_size(d: int) -> OpKernel:
        if d <= TUNING.kernel_network_most:
            return by_network
        if d > TUNING.kernel_sorted_most:
            return by_counting
        by_levels = d <= TUNING.kernel_levels_most
        ranks = pallas_sorted.ranks(sort_key, descending=descending)
        which = dict(aid=pallas_network.aid, memory=2) if by_levels else dict(memory=1)
        return _of_many_threads(ranks, d, **which)

    return of_size


def _sort(sort: Sort) -> Callable[[int], OpKernel]:
    """d -> the kernel of values in order."""
    by_network = _of_one_thread(pallas_network.values(sort.key))

    def of_size(d: int) -> OpKernel:
        if d <= TUNING.kernel_network_most:
            return by_network
        return _of_many_threads(pallas_sorted.values(sort.key), d, memory=1)

    return of_size


def _of_one_thread(summary: Callable[..., tuple], **which) -> OpKernel:
    """A kernel that sorts a row in the registers of a thread."""
    return OpKernel(
        summary,
        None,
        tile=1,
        out_tile=TUNING.kernel_network_most,
        pieces=True,
        warps=TUNING.kernel_network_warps,
        **which,
    )


def _of_many_threads(summary: Callable[..., tuple], d: int, **which) -> OpKernel:
    """A kernel that sorts a whole row."""
    width = power_of_two(d)
    lanes = max(1, TUNING.kernel_sorted_tile // width)
    return OpKernel(
        summary,
        None,
        tile=width,
        out_tile=width,
        pieces=True,
        program=Program(lanes, max(1, width * lanes // TUNING.kernel_sorted_warp)),
        **which,
    )


def _top_k(outputs: Callable[..., jax.Array] | None) -> Callable[[int], Callable[[int], OpKernel]]:
    """k -> d -> the kernel of the k largest."""

    def of_number(k: int) -> Callable[[int], OpKernel]:
        def exactly(row: Row, tangent_ref):
            return pallas_topk.winners(row, k, total_order, tangent_ref)

        best = functools.partial(pallas_topk.best, k=k, sort_key=total_order)
        kernel = _raced(exactly, k, outputs=outputs, tile=1, best=best)
        return lambda d: kernel

    return of_number


_ARGMAX = _raced(pallas_argmax.winners, 1, outputs=pallas_topk.k_hot, best=pallas_argmax.best)

# A new op with a fused kernel is one line here: op -> (d -> its kernel).
OP_KERNELS: dict[str, Callable[[int], OpKernel]] = {
    "argmax": lambda d: _ARGMAX,
    **{op: _ranking(op) for op in SORT_KEYS},
    **{op: _sort(sort) for op, sort in SORTS.items()},
}
SIZED_OP_KERNELS: dict[str, Callable[[int], Callable[[int], OpKernel]]] = {
    "top_k": _top_k(pallas_topk.k_hot),
    "top_k_indices": _top_k(None),
}


def op_kernel(op: str, d: int) -> OpKernel:
    """The fused kernel of an op, by its key, for rows of d coordinates."""
    return entry(op, OP_KERNELS, SIZED_OP_KERNELS)(d)
