"""Device functions of the Triton kernels that work on rows: where a program is, and what it draws.

Lanes are samples, and a loop goes over the coordinates, so that nothing is reduced across lanes.
"""

import triton
import triton.language as tl

from perturbk.kernels.triton_streams import drawn, variate, words_of_group, words_of_sample


@triton.jit
def place(LOOP: tl.constexpr):
    """(plane, piece of the loop, values side by side) of this program."""
    program = tl.program_id(0)
    plane = program // (LOOP.blocks * LOOP.pieces)
    piece = (program // LOOP.blocks) % LOOP.pieces
    return plane, piece, (program % LOOP.blocks) * LOOP.lanes + tl.arange(0, LOOP.lanes)


@triton.jit
def open_row(
    words_ptr, x_ptr, sigma_ptr, plane, start, sample, DRAWS: tl.constexpr, WIDTH: tl.constexpr
):
    """A plane's row from coordinate `start` on, for `perturbed`.

    x and sigma are [planes, WIDTH], but sigma [planes] if it is one for all of a row.
    """
    words_ptr, alike = words_of_group(words_ptr, plane // (DRAWS.shared * DRAWS.rows), DRAWS)
    words = words_of_sample(words_ptr, alike, sample, DRAWS)
    at = plane.to(tl.int64) * WIDTH + start
    sigma = tl.load(sigma_ptr + plane) if DRAWS.one_sigma else sigma_ptr + at
    return words, (plane % DRAWS.rows).to(tl.uint32), start, x_ptr + at, sigma


@triton.jit
def perturbed(row, first, COUNT: tl.constexpr, DRAWS: tl.constexpr):
    """x + sigma z at `COUNT` coordinates of an open row from its `first` on: a tuple."""
    words, index, start, x_ptr, sigma = row
    e = drawn(words, index, tl.cast(start + first, tl.uint32), COUNT, DRAWS)
    out = ()
    for i in tl.static_range(COUNT):
        scale = sigma if DRAWS.one_sigma else tl.load(sigma + first + i)
        out = out + (tl.load(x_ptr + first + i) + scale * variate(e[i], DRAWS),)
    return out
