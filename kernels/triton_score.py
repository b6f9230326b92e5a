"""Score products in Triton kernels: `S t` and `S^T w` for any `fun`, with S never stored.

Operands as in `xla_score.py`. A *cell* is what a stream draws together: `DRAWS.together` elements,
neighbours in a row of the leaf. In `S t` lanes are samples and a loop goes over the cells, in
`S^T w` the other way round, so that nothing is reduced across lanes.
"""

import triton
import triton.language as tl

from perturbk.kernels.triton_noise import moment
from perturbk.kernels.triton_rows import place
from perturbk.kernels.triton_streams import drawn, words_of_group, words_of_sample


@triton.jit
def _moments(
    words,
    cell,
    PER_ROW: tl.constexpr,
    ORDER: tl.constexpr,
    POWER: tl.constexpr,
    DRAWS: tl.constexpr,
):
    """h_m(z) z^n of the elements of a cell: a tuple."""
    TOGETHER: tl.constexpr = DRAWS.together
    cell = cell.to(tl.uint32)
    row, j = tl.zeros_like(cell), cell
    if DRAWS.rows > 1:
        row, j = cell // PER_ROW, cell % PER_ROW
    e = drawn(words, row, j * TOGETHER, TOGETHER, DRAWS)
    out = ()
    for i in tl.static_range(TOGETHER):
        out = out + (moment(e[i], ORDER, POWER, DRAWS),)
    return out


@triton.jit
def dot(
    words_ptr,  # [groups, words, N]
    v_ptr,  # [planes, LOOP.width, DRAWS.together], zero behind the end
    out_ptr,  # out: [planes, LOOP.pieces, N]
    PER_ROW: tl.constexpr,
    ORDER: tl.constexpr,
    POWER: tl.constexpr,
    DRAWS: tl.constexpr,
    LOOP: tl.constexpr,
):
    """sum_e h_m(z) z^n v_e over one piece of the cells."""
    TOGETHER: tl.constexpr = DRAWS.together
    TURN: tl.constexpr = LOOP.turn
    plane, piece, sample = place(LOOP)
    words_ptr, alike = words_of_group(words_ptr, plane // DRAWS.shared, DRAWS)
    words = words_of_sample(words_ptr, alike, sample, DRAWS)
    v_ptr += (plane * LOOP.pieces + piece).to(tl.int64) * (LOOP.piece * TOGETHER)
    start = piece * LOOP.piece

    total = tl.full((LOOP.lanes,), 0, tl.float32)
    for first in range(0, LOOP.piece, TURN):
        for u in tl.static_range(TURN):
            cell = first + u
            h = _moments(words, start + cell, PER_ROW, ORDER, POWER, DRAWS)
            for i in tl.static_range(TOGETHER):
                total += tl.load(v_ptr + cell * TOGETHER + i) * h[i]
    out = (plane * LOOP.pieces + piece).to(tl.int64) * DRAWS.num_samples + sample
    tl.store(out_ptr + out, total, mask=sample < DRAWS.num_samples)


@triton.jit
def weighted(
    words_ptr,  # [groups, words, N]
    w_ptr,  # [planes, LOOP.width], zero behind the end
    out_ptr,  # out: [planes, LOOP.pieces, CELLS, DRAWS.together]
    CELLS: tl.constexpr,
    PER_ROW: tl.constexpr,
    ORDER: tl.constexpr,
    POWER: tl.constexpr,
    DRAWS: tl.constexpr,
    LOOP: tl.constexpr,
):
    """sum_s w_s h_m(z_s) z_s^n over one piece of the samples."""
    TOGETHER: tl.constexpr = DRAWS.together
    TURN: tl.constexpr = LOOP.turn
    plane, piece, cell = place(LOOP)
    words_ptr, alike = words_of_group(words_ptr, plane // DRAWS.shared, DRAWS)
    w_ptr += plane.to(tl.int64) * LOOP.width

    totals = ()
    for _ in tl.static_range(TOGETHER):
        totals = totals + (tl.full((LOOP.lanes,), 0, tl.float32),)
    for first in range(0, LOOP.piece, TURN):
        s = piece * LOOP.piece + first
        # A sample whose output equals the baseline's weighs nothing: most do if sigma is small.
        live = tl.load(w_ptr + s) != 0
        for u in tl.static_range(1, TURN):
            live |= tl.load(w_ptr + s + u) != 0
        if live:
            for u in tl.static_range(TURN):
                words = words_of_sample(words_ptr, alike, s + u, DRAWS)
                h, w = _moments(words, cell, PER_ROW, ORDER, POWER, DRAWS), tl.load(w_ptr + s + u)
                for i in tl.static_range(TOGETHER):
                    totals = totals[1:] + (totals[0] + w * h[i],)
    out_ptr += (plane * LOOP.pieces + piece).to(tl.int64) * (CELLS * TOGETHER)
    for i in tl.static_range(TOGETHER):
        at = cell.to(tl.int64) * TOGETHER + i
        tl.store(out_ptr + at, totals[i], mask=cell < CELLS)
