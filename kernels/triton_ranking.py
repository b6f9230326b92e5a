"""Triton kernels of rankings and sorts: the keys of a row in registers, one sample in each lane.

A tuple holds one value per coordinate. No register can be indexed by a loop counter, so tuples are
queues: the keys enter one by one, and the first leaves for its rank and enters again at the end. If
`VALUES` are wanted rather than ranks, each key enters at its place in their order.
"""

import triton
import triton.language as tl

from perturbk.kernels.triton_rows import open_row, perturbed, place

_LARGEST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _sort_key(y, OP: tl.constexpr):
    """int32 keys, of which the smallest comes first; OP is one of `ranking.SORT_KEYS`."""
    if OP != "ranking":
        y = -y
    bits = y.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return tl.where(y != y, -_LARGEST if OP == "ranking_nan_first" else _LARGEST, key)


@triton.jit
def _queue(value, WIDTH: tl.constexpr):
    queue = (value,)
    for _ in tl.static_range(WIDTH - 1):
        queue = queue + (value,)
    return queue


@triton.jit
def _draw_keys(
    row,
    WIDTH: tl.constexpr,
    TURN: tl.constexpr,
    OP: tl.constexpr,
    VALUES: tl.constexpr,
    DRAWS: tl.constexpr,
    LOOP: tl.constexpr,
):
    """Queue of the sort keys of an open row; what lies behind its end comes last."""
    last = tl.full((LOOP.lanes,), _LARGEST, tl.int32)
    keys = _queue(last, WIDTH)
    for first in range(0, WIDTH, TURN):
        ys = perturbed(row, first, TURN, DRAWS)
        for u in tl.static_range(TURN):
            key = tl.where(first + u < DRAWS.d, _sort_key(ys[u], OP), last)
            keys = _inserted(keys, key, WIDTH) if VALUES else keys[1:] + (key,)
    return keys


@triton.jit
def _inserted(keys, key, WIDTH: tl.constexpr):
    """The smallest of ascending keys and another, in order; the largest makes room."""
    out = ()
    for i in tl.static_range(WIDTH):
        out = out + (tl.minimum(keys[i], key),)
        key = tl.maximum(keys[i], key)
    return out


@triton.jit
def _next(keys, WIDTH: tl.constexpr, VALUES: tl.constexpr):
    """The code of the next output, and the queue that gives the one behind it."""
    if VALUES:
        code, keys = keys[0], keys[1:] + (keys[0],)
    else:
        code, keys = _next_rank(keys, WIDTH)
    return code, keys


@triton.jit
def _times(code, factor, OP: tl.constexpr, VALUES: tl.constexpr):
    """factor * the output that a code stands for; see `sorting.Sort.output`."""
    if VALUES:
        negative = code < 0
        number = tl.where(negative, -code, code).to(tl.float32, bitcast=True)
        if OP != "ranking":
            negative = code >= 0
        product = tl.where(factor == 0, 0.0, factor * tl.where(negative, -number, number))
    else:
        product = factor * code.to(tl.float32)
    return product


@triton.jit
def _next_rank(keys, WIDTH: tl.constexpr):
    """Rank of the first key, and the queue with that key at its end.

    There it is one less, so that it comes before an equal key of a later coordinate.
    """
    key = keys[0]
    rank = tl.zeros_like(key)
    for i in tl.static_range(1, WIDTH):
        rank += (keys[i] < key).to(tl.int32)
    return rank, keys[1:] + (key - 1,)


@triton.jit
def codes(
    words_ptr,  # [groups, words, N]
    x_ptr,  # [planes, WIDTH]
    sigma_ptr,  # likewise, or [planes]
    out_ptr,  # out: [planes, D, N]
    WIDTH: tl.constexpr,
    TURN: tl.constexpr,
    OP: tl.constexpr,
    VALUES: tl.constexpr,
    DRAWS: tl.constexpr,
    LOOP: tl.constexpr,
):
    """Codes of every output in every sample."""
    plane, start, sample = place(LOOP)
    row = open_row(words_ptr, x_ptr, sigma_ptr, plane, start, sample, DRAWS, WIDTH)
    keys = _draw_keys(row, WIDTH, TURN, OP, VALUES, DRAWS, LOOP)
    out_ptr += plane.to(tl.int64) * DRAWS.d * DRAWS.num_samples
    for first in range(0, WIDTH, TURN):
        for u in tl.static_range(TURN):
            i = first + u
            code, keys = _next(keys, WIDTH, VALUES)
            out = code.to(out_ptr.dtype.element_ty)
            if i < DRAWS.d:
                at = i.to(tl.int64) * DRAWS.num_samples + sample
                tl.store(out_ptr + at, out, mask=sample < DRAWS.num_samples)


@triton.jit
def weighted(
    words_ptr,  # [groups, words, N]
    x_ptr,  # [planes, WIDTH]
    sigma_ptr,  # likewise, or [planes]
    weights_ptr,  # [planes // DRAWS.rows, N]
    out_ptr,  # out: [planes, LOOP.pieces, WIDTH]
    WIDTH: tl.constexpr,
    TURN: tl.constexpr,
    OP: tl.constexpr,
    VALUES: tl.constexpr,
    DRAWS: tl.constexpr,
    LOOP: tl.constexpr,
):
    """sum_s W_s op(y_s) over a piece of the samples, each lane's in a queue until the end."""
    plane, piece, lane = place(LOOP)
    weights_ptr += (plane // DRAWS.rows).to(tl.int64) * DRAWS.num_samples

    totals = _queue(tl.full((LOOP.lanes,), 0, tl.float32), WIDTH)
    for at in range(0, LOOP.piece, LOOP.lanes):
        sample = piece * LOOP.piece + at + lane
        row = open_row(words_ptr, x_ptr, sigma_ptr, plane, 0, sample, DRAWS, WIDTH)
        weight = tl.load(weights_ptr + sample, mask=sample < DRAWS.num_samples, other=0.0)
        keys = _draw_keys(row, WIDTH, TURN, OP, VALUES, DRAWS, LOOP)
        for _first in range(0, WIDTH, TURN):
            for _u in tl.static_range(TURN):
                code, keys = _next(keys, WIDTH, VALUES)
                totals = totals[1:] + (totals[0] + _times(code, weight, OP, VALUES),)
    out_ptr += (plane * LOOP.pieces + piece).to(tl.int64) * WIDTH
    for i in tl.static_range(WIDTH):
        tl.store(out_ptr + i, tl.sum(totals[i], 0))


@triton.jit
def dot(
    words_ptr,  # [groups, words, N]
    x_ptr,  # [planes, WIDTH]
    sigma_ptr,  # likewise, or [planes]
    g_ptr,  # [planes, WIDTH], zero behind the end of a row
    out_ptr,  # out: [planes, N]
    WIDTH: tl.constexpr,
    TURN: tl.constexpr,
    OP: tl.constexpr,
    VALUES: tl.constexpr,
    DRAWS: tl.constexpr,
    LOOP: tl.constexpr,
):
    """<op(y_s), g> of one row."""
    plane, start, sample = place(LOOP)
    row = open_row(words_ptr, x_ptr, sigma_ptr, plane, start, sample, DRAWS, WIDTH)
    g_ptr += plane.to(tl.int64) * WIDTH
    keys = _draw_keys(row, WIDTH, TURN, OP, VALUES, DRAWS, LOOP)
    total = tl.full((LOOP.lanes,), 0, tl.float32)
    for first in range(0, WIDTH, TURN):
        for u in tl.static_range(TURN):
            code, keys = _next(keys, WIDTH, VALUES)
            total += _times(code, tl.load(g_ptr + first + u), OP, VALUES)
    out_ptr += plane.to(tl.int64) * DRAWS.num_samples
    tl.store(out_ptr + sample, total, mask=sample < DRAWS.num_samples)
