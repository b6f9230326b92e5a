"""Device functions of the Triton kernels: what a stream draws at a counter, as in `streams.py`."""

import triton
import triton.language as tl

from perturbk.kernels import triton_noise
from perturbk.kernels.triton_philox import all_four, encrypted, one_of_four, short_log


@triton.jit
def words_of_group(words_ptr, group, DRAWS: tl.constexpr):
    """Pointer to a group's words, [words, N], and those words that its samples have in common."""
    words_ptr += group.to(tl.int64) * (DRAWS.words * DRAWS.num_samples)
    alike = ()
    if DRAWS.philox:
        k0, k1 = tl.load(words_ptr), tl.load(words_ptr + DRAWS.num_samples)
        alike = k0, k1, tl.load(words_ptr + 3 * DRAWS.num_samples)
    return words_ptr, alike


@triton.jit
def words_of_sample(words_ptr, alike, sample, DRAWS: tl.constexpr):
    """The words of one sample, or of one in each lane; zero behind the last."""
    inside = sample < DRAWS.num_samples
    if DRAWS.philox:
        k0, k1, leaf = alike
        words = k0, k1, tl.load(words_ptr + 2 * DRAWS.num_samples + sample, inside, 0), leaf
    else:
        k0 = tl.load(words_ptr + sample, inside, 0)
        words = k0, tl.load(words_ptr + DRAWS.num_samples + sample, inside, 0)
    return words


@triton.jit
def _threefry(words, element, DRAWS: tl.constexpr):
    k0, k1 = words
    element = triton_noise.opaque(tl.zeros_like(k0) + element, DRAWS)
    return triton_noise.drawn(triton_noise.element_bits(k0, k1, element), DRAWS)


@triton.jit
def _one(words, row, j, DRAWS: tl.constexpr):
    """What is drawn at coordinate j of a row, both uint32."""
    outer, rest = row // DRAWS.inner, row % DRAWS.inner
    if DRAWS.philox:
        step: tl.constexpr = DRAWS.inner // DRAWS.last
        in_leaf = outer * ((DRAWS.d * step) % (1 << 32)) + rest // DRAWS.last + j * step
        column = rest % DRAWS.last
        bits = encrypted(words, in_leaf, column >> 2)
        out = one_of_four(bits, column & 3, DRAWS)
    else:
        base = outer * ((DRAWS.d * DRAWS.inner) % (1 << 32)) + rest
        out = _threefry(words, base + j * (DRAWS.inner % (1 << 32)), DRAWS)
    return out


@triton.jit
def drawn(words, row, j, COUNT: tl.constexpr, DRAWS: tl.constexpr):
    """What is drawn at `COUNT` coordinates of a row from j on, both uint32: a tuple.

    `COUNT` and j are multiples of `DRAWS.together`.
    """
    TOGETHER: tl.constexpr = DRAWS.together
    out = ()
    for i in tl.static_range(0, COUNT, TOGETHER):
        if TOGETHER == 4:
            bits = encrypted(words, row, (j + i) >> 2)
            out = out + all_four(bits, DRAWS)
        else:
            out = out + (_one(words, row, j + i, DRAWS),)
    return out


@triton.jit
def variate(drawn, DRAWS: tl.constexpr):
    """The standard variate z."""
    if not DRAWS.gumbel:
        z = drawn
    elif DRAWS.philox:
        z = short_log(drawn, DRAWS) * -1.0
    else:
        z = triton_noise.log(drawn) * -1.0
    return z
