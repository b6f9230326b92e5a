"""The Triton kernels, run by Triton's interpreter: the same launches as on a GPU, with numpy.

Codes are equal to those of XLA's implementation, sums up to rounding. The interpreter takes
milliseconds for each variate of a program, so that shapes are small.
"""

import dataclasses
import functools
import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturbk
from checks import normal, quick, words_of
from perturbk.implementations import check
from perturbk.kernels import triton, triton_plan, xla, xla_score
from perturbk.kernels.ops import op_math
from perturbk.kernels.sorting import SORTS
from perturbk.kernels.streams import STREAMS

if importlib.util.find_spec("triton") is None:
    pytest.skip("no triton", allow_module_level=True)

import triton_interpreter

triton_interpreter.load()
from perturbk.kernels import triton_ops, triton_products  # noqa: E402

RANKINGS = ("ranking", "ranking_descending", "ranking_nan_first")
KEY = jax.random.key(0)
FEW = dict(
    triton_lanes=32,
    triton_unroll=2,
    triton_score_unroll=2,
    triton_piece_least=2,
    triton_ranking_unroll=3,
    triton_top_k_turns_from=1,
)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(triton, "LAUNCHER", triton_interpreter.launch)


@pytest.fixture
def other_blocks(monkeypatch):
    """Fewer lanes, other pieces: every loop is cut at other places."""
    tuning = dataclasses.replace(triton_plan.TUNING, **FEW)
    for module in (triton_plan, triton_ops, triton_products):
        monkeypatch.setattr(module, "TUNING", tuning)


def drawn(*shape):
    return jnp.asarray(normal(sum(shape), *shape))


def close(found, expected, scale):
    """Equal up to the rounding of a sum whose terms are of the magnitude `scale`."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * scale)


def check_op(op, noise, num_samples, shape, inner=1, *, sums=True, rng="jax", last=0):
    """samples, op_sum and op_dot of one set of operands, against XLA's.

    `last` is the length of the leaf's last axis if it is not the one that the op works along.
    """
    groups, shared, _, d = shape
    stream = STREAMS[rng](last or d)
    keys = words_of(stream, KEY, groups, num_samples, leaf=3)
    x, sigma = drawn(*shape), 0.7 + jnp.abs(drawn(groups, shared, 1, d if shared == 1 else 1))
    static = dict(op=op, noise=noise, inner=inner, stream=stream)
    on_triton = dict(static, platform="cpu")
    codes = triton_ops.samples(keys, x, sigma, **on_triton)
    expected = quick(xla.samples, keys, x, sigma, **static)
    assert codes.dtype == expected.dtype
    if op in SORTS:  # the codes of floats
        close(SORTS[op].value(codes), SORTS[op].value(expected), scale=4)
    else:
        np.testing.assert_array_equal(codes, expected)
    if not sums:
        return
    weights, g = drawn(groups, shared, num_samples), drawn(*shape[:3], op_math(op).out_size(d))
    close(
        triton_ops.op_sum(keys, x, sigma, weights, **on_triton),
        quick(xla.op_sum, keys, x, sigma, weights, **static),
        scale=d * num_samples**0.5,
    )
    close(
        triton_ops.op_dot(keys, x, sigma, g, **on_triton),
        quick(xla.op_dot, keys, x, sigma, g, **static),
        scale=d * d**0.5,
    )


SHAPES = {  # num_samples, (groups, shared, rows, d), inner
    "one": (1, (1, 1, 1, 1), 1),
    "rows": (130, (1, 1, 2, 5), 3),
    "shared": (7, (1, 2, 1, 31), 1),
    "groups": (7, (2, 1, 1, 65), 1),
}


@pytest.mark.parametrize("noise", ["gumbel", "normal"])
@pytest.mark.parametrize("name", SHAPES)
def test_argmax(name, noise):
    num_samples, shape, inner = SHAPES[name]
    check_op("argmax", noise, num_samples, shape, inner, sums=noise == "gumbel")


@pytest.mark.parametrize(
    ("num_samples", "shape", "inner"),
    [(1, (1, 1, 1, 1), 1), (130, (2, 1, 2, 5), 3), (7, (1, 2, 1, 13), 1), (3, (1, 1, 1, 63), 1)],
    ids=["one", "rows", "shared", "two turns"],
)
def test_ranking(num_samples, shape, inner):
    check_op("ranking", "gumbel", num_samples, shape, inner, sums=shape[3] < 63)


@pytest.mark.parametrize(
    ("op", "num_samples", "shape"),
    [("sort", 1, (1, 1, 1, 1)), ("sort_descending", 7, (2, 1, 2, 5)), ("sort", 3, (1, 2, 1, 13))],
)
def test_sort(op, num_samples, shape):
    check_op(op, "gumbel", num_samples, shape)


PHILOX = {  # op, noise, num_samples, shape, inner, last
    "argmax in fours": ("argmax", "gumbel", 130, (1, 1, 2, 5), 1, 0),
    "argmax of normal fours": ("argmax", "normal", 7, (2, 1, 1, 18), 1, 0),
    "argmax along another axis": ("argmax", "normal", 7, (1, 2, 12, 3), 6, 3),
    "ranking in fours": ("ranking", "gumbel", 7, (1, 1, 2, 13), 1, 0),
    "ranking along another axis": ("ranking", "gumbel", 7, (1, 1, 6, 4), 3, 3),
    "top-k in fours": ("top_k_2", "gumbel", 7, (2, 1, 1, 6), 1, 0),
    "top-k by turns": ("top_k_indices_1", "gumbel", 7, (1, 1, 1, 35), 1, 0),
}


@pytest.mark.parametrize("name", PHILOX)
def test_philox(name):
    *case, last = PHILOX[name]
    check_op(*case, rng="philox", last=last)


@pytest.mark.parametrize(
    ("op", "num_samples", "shape", "inner"),
    [
        ("top_k_1", 1, (1, 1, 1, 1), 1),
        ("top_k_3", 130, (1, 1, 2, 5), 3),
        ("top_k_indices_7", 7, (1, 2, 1, 7), 1),
        ("top_k_1", 7, (1, 1, 1, 33), 1),
    ],
    ids=["one", "rows", "shared", "by turns"],
)
def test_top_k(op, num_samples, shape, inner):
    check_op(op, "gumbel", num_samples, shape, inner, sums=shape[3] < 33)


NAN, INF = np.nan, np.inf
STRANGE = {
    "ties": [0, 1, 1, -2, 1, -2, 0],
    "ties of turns": [1, -1, -1, -1, 3, 1, -1],  # the turn of the 3 is drawn again first
    "nan": [0, INF, NAN, 1, NAN, -INF, 2],
    "infinities": [-INF, 1, INF, -INF, INF, 2, 0],
    "nothing": [-INF] * 7,
    "negative nan": [-NAN, -INF, NAN, -NAN, -NAN, 1, -NAN],
    "zeros": [-0.0, 0.0, -0.0, 0.0, 0.0, -0.0, 1.0],
}


@pytest.mark.parametrize(
    ("op", "times"), [*((op, 1) for op in ("argmax", *RANKINGS, "top_k_indices_7")), ("top_k_1", 5)]
)
def test_strange_values(op, times):
    """In rows that are repeated so many times, the k largest are found by turns."""
    x = jnp.tile(jnp.asarray(list(STRANGE.values()), jnp.float32), times)[None, None]
    sigma = jnp.full((1, 1, 1, 1), 1e-30, jnp.float32)  # lost in the sum, but where x is zero
    stream = STREAMS["philox"](7 * times)
    keys, static = (
        words_of(stream, KEY, 1, 3, leaf=3),
        dict(op=op, noise="gumbel", inner=1, stream=stream),
    )
    found = triton_ops.samples(keys, x, sigma, **static, platform="cpu")
    np.testing.assert_array_equal(found, quick(xla.samples, keys, x, sigma, **static))


def test_element_indices_wrap_as_uint32():
    check_op("argmax", "gumbel", 7, (1, 1, 1, 2), inner=2**31 - 1)
    check_op("ranking", "gumbel", 7, (1, 1, 1, 2), inner=2**31 - 1)


@pytest.mark.parametrize("noise", ["gumbel", "normal"])
@pytest.mark.parametrize(
    ("num_samples", "shape", "order", "power", "rng"),
    [
        *((7, (2, 2, 5), *powers, "jax") for powers in ((1, 0), (1, 1), (2, 0), (2, 2))),
        (1, (1, 1, 63), 1, 0, "jax"),
        (130, (1, 1, 1), 1, 0, "jax"),
        (7, (1, 2, 15), 1, 1, "philox"),  # rows of 5
        (130, (1, 1, 6), 1, 0, "philox"),
    ],
)
def test_score_products(num_samples, shape, order, power, rng, noise):
    stream = STREAMS[rng](5 if shape[2] % 5 == 0 else shape[2])
    keys = words_of(stream, KEY, shape[0], num_samples, leaf=3)
    static = dict(noise=noise, order=order, power=power, stream=stream)
    v = drawn(*shape)
    w = drawn(*shape[:2], num_samples).at[..., 10:30].set(0)  # whole turns of the loop are left out
    expected = quick(xla_score.score_dot, keys, v, **static)
    close(
        triton_products.score_dot(keys, v, **static, platform="cpu"),
        expected,
        scale=max(1, jnp.abs(expected).max()),
    )
    expected = quick(xla_score.score_sum, keys, w, size=shape[2], **static)
    close(
        triton_products.score_sum(keys, w, size=shape[2], **static, platform="cpu"),
        expected,
        scale=max(1, jnp.abs(expected).max()),
    )


@pytest.mark.parametrize("rng", ["jax", "philox"])
@pytest.mark.parametrize("op", ["argmax", "ranking", "top_k_2"])
def test_codes_do_not_depend_on_the_blocks(op, rng, other_blocks):
    check_op(op, "gumbel", 40, (1, 1, 1, 9), rng=rng)


@pytest.mark.parametrize(("op", "times"), [("argmax", 1), ("top_k_3", 2)])
def test_strange_values_in_pieces(op, times, other_blocks):
    test_strange_values(op, times)


@pytest.mark.parametrize("rng", ["jax", "philox"])
def test_score_products_in_other_blocks(rng, other_blocks):
    test_score_products(40, (1, 1, 7), 1, 0, rng, "gumbel")


def test_the_same_bits_in_every_run():
    keys, x = words_of(STREAMS["jax"](5), KEY, 1, 7, leaf=3), drawn(1, 1, 1, 5)
    sigma, w = jnp.ones((1, 1, 1, 1)), drawn(1, 1, 7)
    static = dict(op="ranking", noise="normal", inner=1, platform="cpu")
    first, second = (triton_ops.op_sum(keys, x, sigma, w, **static) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def both(fun, **options):
    make = perturbk.make_perturbed_fun
    return (make(fun, 9, 0.5, implementation=name, **options) for name in ("triton", "xla"))


TOP_2 = functools.partial(perturbk.top_k, k=2)


@pytest.mark.parametrize(
    ("fun", "rng"),
    [
        *((fun, "jax") for fun in (perturbk.argmax_one_hot, perturbk.ranking, jnp.cumsum, TOP_2)),
        *((fun, "philox") for fun in (perturbk.argmax_one_hot, jnp.sort, jnp.cumsum, TOP_2)),
    ],
)
def test_value_gradient_and_map(fun, rng):
    """The whole way: recognition, primitives, derivatives, and batching over x and the key."""
    x, y = drawn(2, 5), drawn(5)

    def results(f):
        def loss(key, x):
            return jnp.sum(f(key, x) ** 2)

        over_x = jax.vmap(jax.value_and_grad(loss, 1), (None, 0))(KEY, x)
        tangent = jax.jit(lambda x: jax.jvp(lambda x: f(KEY, x), (x,), (x,)))(y)
        over_keys = jax.vmap(f, (0, None))(jax.random.split(KEY, 2), y)
        return jax.tree.leaves((over_x, tangent, over_keys))

    for found, expected in zip(*map(results, both(fun, rng=rng)), strict=True):
        close(found, expected, scale=max(1, jnp.abs(expected).max()))


def test_long_rankings_are_refused():
    f, _ = both(perturbk.ranking)
    with pytest.raises(NotImplementedError, match="above 64 coordinates ranking has no Triton"):
        f(KEY, jnp.zeros(65))


def test_importing_perturbk_does_not_import_triton():
    script = "import perturbk, sys; assert not {'triton', 'jax_triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_pairs_are_refused():
    stream = STREAMS["threefry_pair"](5)
    with pytest.raises(NotImplementedError, match="rng='philox' only"):
        check("triton", "cuda", "argmax", 5, stream)
