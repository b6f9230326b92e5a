"""Triton kernels of the k largest: each sample's winners so far, in registers, by insertion."""

import triton
import triton.language as tl

from perturbk.kernels.triton_rows import open_row, perturbed, place

_LAST = tl.constexpr(-(2**31))  # behind every key


@triton.jit
def _total_order(y):
    """int32 keys as of `topk.total_order`, but that one of them may be `_LAST`."""
    bits = y.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _insert(kept, key, index, K: tl.constexpr, IN_ORDER: tl.constexpr):
    """`kept`, K pairs (key, index) in descending order, ties by the lower index, with a new one.

    `IN_ORDER` if the indices of the new pairs rise. The last pair makes room.
    """
    out = ()
    down_key, down_index = key, index  # what moves down if the new pair comes in above
    for _ in tl.static_range(K):
        key_here, index_here = kept[0], kept[1]
        wins = key > key_here
        if not IN_ORDER:
            wins |= (key == key_here) & (index < index_here)
        out = out + (tl.where(wins, down_key, key_here), tl.where(wins, down_index, index_here))
        down_key, down_index = tl.where(wins, key_here, key), tl.where(wins, index_here, index)
        kept = kept[2:]
    return out


@triton.jit
def _nothing(K: tl.constexpr, LOOP: tl.constexpr):
    last, index = tl.full((LOOP.lanes,), _LAST, tl.int32), tl.full((LOOP.lanes,), 0, tl.int32)
    kept = ()
    for _ in tl.static_range(K):
        kept = kept + (last, index)
    return kept


@triton.jit
def _keys(row, start, first, DRAWS: tl.constexpr, LOOP: tl.constexpr):
    """Keys of a turn, above `_LAST` but behind the end of the row: a tuple."""
    TURN: tl.constexpr = LOOP.turn
    ys = perturbed(row, first, TURN, DRAWS)
    keys = ()
    for u in tl.static_range(TURN):
        key = tl.maximum(_total_order(ys[u]), _LAST + 1)
        keys = keys + (tl.where(start + first + u < DRAWS.d, key, _LAST),)
    return keys


@triton.jit
def winners(
    words_ptr,  # [groups, words, N]
    x_ptr,  # [planes, LOOP.width]
    sigma_ptr,  # likewise, or [planes]
    key_ptr,  # out: [planes, LOOP.pieces, K, N]
    arg_ptr,  # out: [planes, LOOP.pieces, K, N]
    K: tl.constexpr,
    BY_TURNS: tl.constexpr,
    DRAWS: tl.constexpr,
    LOOP: tl.constexpr,
):
    """The k largest of one piece of a row, in descending order, and their keys.

    `BY_TURNS`: of each turn only the largest is inserted, and the turns of the k largest are drawn
    once more at the end, for no other turn has a winner.
    """
    TURN: tl.constexpr = LOOP.turn
    plane, piece, sample = place(LOOP)
    start = piece * LOOP.piece
    WIDTH: tl.constexpr = LOOP.width
    row = open_row(words_ptr, x_ptr, sigma_ptr, plane, start, sample, DRAWS, WIDTH)
    kept = _nothing(K, LOOP)
    for first in range(0, LOOP.piece, TURN):
        keys = _keys(row, start, first, DRAWS, LOOP)
        if BY_TURNS:
            top = keys[0]
            for u in tl.static_range(1, TURN):
                top = tl.maximum(top, keys[u])
            kept = _insert(kept, top, tl.zeros_like(top) + first, K, True)
        else:
            for u in tl.static_range(TURN):
                index = tl.zeros_like(keys[u]) + (start + first + u)
                kept = _insert(kept, keys[u], index, K, True)
    if BY_TURNS:
        turns, kept = kept, _nothing(K, LOOP)
        for _ in range(K):
            top, at = turns[0], turns[1]
            turns = turns[2:] + (top, at)
            again = _keys(row, start, at, DRAWS, LOOP)
            for u in tl.static_range(TURN):
                key = tl.where(top == _LAST, _LAST, again[u])  # no turn is kept there
                kept = _insert(kept, key, start + at + u, K, False)
    out = (plane * LOOP.pieces + piece).to(tl.int64) * (K * DRAWS.num_samples) + sample
    for i in tl.static_range(K):
        tl.store(key_ptr + out, kept[2 * i], mask=sample < DRAWS.num_samples)
        tl.store(arg_ptr + out, kept[2 * i + 1], mask=sample < DRAWS.num_samples)
        out += DRAWS.num_samples
