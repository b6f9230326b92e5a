"""Triton kernels of the argmax: each sample's winner, and sums over the samples of its one-hot."""

import triton
import triton.language as tl

from perturbk.kernels.triton_rows import open_row, perturbed, place


@triton.jit
def winners(
    words_ptr,  # [groups, words, N]
    x_ptr,  # [planes, LOOP.width], -inf behind the end of a row
    sigma_ptr,  # likewise, or [planes]
    best_ptr,  # out: [planes, LOOP.pieces, N]
    arg_ptr,  # out: [planes, LOOP.pieces, N]
    DRAWS: tl.constexpr,
    LOOP: tl.constexpr,
):
    """Largest value, and its first index, in one piece of a row; the first NaN is the largest.

    The values of a turn are kept together if one of them is the largest so far, and told apart only
    at the end.
    """
    TURN: tl.constexpr = LOOP.turn
    plane, piece, sample = place(LOOP)
    start = piece * LOOP.piece
    WIDTH: tl.constexpr = LOOP.width
    row = open_row(words_ptr, x_ptr, sigma_ptr, plane, start, sample, DRAWS, WIDTH)

    best = tl.full((LOOP.lanes,), float("-inf"), tl.float32)
    arg = tl.full((LOOP.lanes,), 0, tl.int32) + start  # the winner if all are -inf
    kept = ()
    for _ in tl.static_range(TURN):
        kept = kept + (best,)
    for first in range(0, LOOP.piece, TURN):
        ys = perturbed(row, first, TURN, DRAWS)
        top = ys[0]
        for u in tl.static_range(1, TURN):
            top = tl.maximum(top, ys[u], propagate_nan=tl.PropagateNan.ALL)
        # Strict, so that the first index wins ties; also true if only the new one is NaN.
        better = ~(top <= best) & (best == best)
        best, arg = tl.where(better, top, best), tl.where(better, start + first, arg)
        for u in tl.static_range(TURN):
            kept = kept[1:] + (tl.where(better, ys[u], kept[0]),)
    behind = tl.full((LOOP.lanes,), 0, tl.int32)
    for u in tl.static_range(TURN - 1, -1, -1):
        behind = tl.where((kept[u] == best) | (kept[u] != kept[u]), u, behind)
    out = (plane * LOOP.pieces + piece).to(tl.int64) * DRAWS.num_samples + sample
    tl.store(best_ptr + out, best, mask=sample < DRAWS.num_samples)
    tl.store(arg_ptr + out, arg + behind, mask=sample < DRAWS.num_samples)


@triton.jit
def one_hot_sums(
    arg_ptr,  # [planes, N]
    weights_ptr,  # [planes // ROWS, N]
    out_ptr,  # out: [planes, LOOP.pieces, D]
    N: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    LOOP: tl.constexpr,
):
    """sum_s W_s one_hot(winner_s) over one piece of the samples. Here lanes are coordinates."""
    TURN: tl.constexpr = LOOP.turn
    plane, piece, j = place(LOOP)
    arg_ptr += plane.to(tl.int64) * N
    weights_ptr += (plane // ROWS).to(tl.int64) * N

    total = tl.full((LOOP.lanes,), 0, tl.float32)
    for first in range(0, LOOP.piece, TURN):
        for u in tl.static_range(TURN):
            s = piece * LOOP.piece + first + u
            winner = tl.load(arg_ptr + s, mask=s < N, other=-1)
            weight = tl.load(weights_ptr + s, mask=s < N, other=0.0)
            total += tl.where(j == winner, weight, 0.0)
    out = (plane * LOOP.pieces + piece).to(tl.int64) * D + j
    tl.store(out_ptr + out, total, mask=j < D)
