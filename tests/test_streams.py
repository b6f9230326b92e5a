"""The streams of other numbers than `jax.random`'s: their laws, and every implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import perturbk
from checks import assert_relatively_close, assert_rounding_apart, normal, quick, quick_jit, tuned
from perturbk.kernels import reference
from perturbk.kernels.streams import STREAMS

KEY = jax.random.key(5)
OTHERS = tuple(reference.DRAWS)
NOISES = {"gumbel": perturbk.Gumbel(), "normal": perturbk.Normal()}
LAWS = {"gumbel": stats.gumbel_r, "normal": stats.norm}


def drawn(rng, noise, num_samples, shape, leaf=0):
    """z of the reference: [num_samples, *shape]."""
    draw = reference.DRAWS[rng](KEY, noise)
    like = jnp.zeros(shape)
    return np.asarray(quick(jax.vmap(lambda s: draw(s, leaf, like)), np.arange(num_samples)))


def test_words_grow_by_their_steps():
    """Kernels make those of all samples from the first's."""
    streams = [stream for stream in (of_last(7) for of_last in STREAMS.values()) if stream.steps]
    assert streams
    for stream in streams:
        words = stream.words(KEY, 5, 3)
        grown = words[:, :1] + np.arange(5, dtype=np.uint32) * np.uint32(stream.steps)[:, None]
        np.testing.assert_array_equal(words, grown)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("rng", OTHERS)
def test_moments_and_law(rng, noise):
    z = drawn(rng, noise, 2000, (4, 50)).astype(np.float64)
    law = LAWS[noise]
    n = z.size
    mean, var, _, excess = law.stats(moments="mvsk")
    assert abs(z.mean() - mean) < 5 * np.sqrt(var / n)
    assert abs(z.var() - var) < 5 * var * np.sqrt((excess + 2) / n)
    assert stats.kstest(z.ravel(), law.cdf).pvalue > 1e-4
    for column in range(4):  # each of the two or four words of a counter
        assert stats.kstest(z[:, :, column::4].ravel(), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("rng", OTHERS)
def test_neighbours_are_not_correlated(rng, noise):
    z = drawn(rng, noise, 1000, (6, 8)).astype(np.float64)
    other = drawn(rng, noise, 1000, (6, 8), leaf=1)
    pairs = {
        "samples": (z[1:], z[:-1]),
        "rows": (z[:, 1:], z[:, :-1]),
        "columns": (z[:, :, 1:], z[:, :, :-1]),
        "pairs": (z[:, :, 2:], z[:, :, :-2]),
        "fours": (z[:, :, 4:], z[:, :, :4]),
        "leaves": (z, other),
        "squares": (z[:, :, 1:] ** 2, z[:, :, :-1] ** 2),
    }
    for name, (a, b) in pairs.items():
        r = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(r) < 5 / np.sqrt(a.size), name


@pytest.mark.parametrize("rng", OTHERS)
def test_winners_have_the_odds_of_a_softmax(rng):
    """Whether they share an encryption or not, and each pair of winners next to each other."""
    x, n = jnp.array([0.3, -0.2, 0.4, 1.0, -1.0, 0.0, 0.1]), 1 << 17
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, n, 1.0, rng=rng)
    odds = jax.nn.softmax(x)
    chi = float(jnp.sum((f(KEY, x) - odds) ** 2 / odds)) * n
    assert chi < stats.chi2.ppf(1 - 1e-5, x.size - 1)


FUNS = {
    "argmax": perturbk.argmax_one_hot,
    "ranking": perturbk.ranking,
    "argmax_first_axis": functools.partial(perturbk.argmax_one_hot, axis=0),
    "ranking_first_axis": functools.partial(perturbk.ranking, axis=0),
    "top_k": lambda x: perturbk.top_k(x, min(2, x.shape[-1])),
    "general": lambda x: jnp.sign(x) + 0.5 * jnp.sin(3 * x),
}


# By the place of a row's elements in the words that are drawn together: rows of one, whole and
# ragged pairs and fours, and many.
SHAPES = {
    "philox": [(1,), (5,), (5, 1), (3, 38), (2, 3, 8)],
    "threefry_pair": [(5, 1), (3, 39), (2, 3, 7)],
}


def of_reference(fun, rng, noise, num_samples):
    """The reference's mean as a function of (key, x)."""
    return lambda key, x: reference.perturbed_mean(
        fun,
        key,
        x,
        num_samples=num_samples,
        sigma=0.5,
        noise=NOISES[noise],
        draw=reference.DRAWS[rng](key, noise),
    )


@functools.cache
def expected_of(rng, fun, noise, shape):
    """(x, the reference's mean)."""
    x = normal(1, *shape)
    tree = {"a": x, "b": x[..., ::-1]}  # the second leaf has noise of its own

    f = of_reference(lambda x: jax.tree.map(FUNS[fun], x), rng, noise, 37)
    return tree, quick(f, KEY, tree)


@pytest.mark.parametrize(
    ("rng", "shape"), [(rng, shape) for rng in OTHERS for shape in SHAPES[rng]], ids=str
)
@pytest.mark.parametrize(
    ("fun", "noise"), [*((fun, "gumbel") for fun in FUNS), ("argmax", "normal")]
)
def test_every_implementation_is_the_reference(rng, fun, noise, shape, implementation):
    f = perturbk.make_perturbed_fun(
        lambda x: jax.tree.map(FUNS[fun], x),
        37,
        0.5,
        NOISES[noise],
        implementation=implementation,
        rng=rng,
    )
    tree, expected = expected_of(rng, fun, noise, shape)
    found = quick_jit(f)(KEY, tree)
    if fun == "general":
        assert_relatively_close(found, expected)
    else:
        expected = jax.tree.map(lambda a: np.asarray(a, np.float32), expected)
        assert_rounding_apart(found, expected)


@pytest.mark.parametrize(
    ("rng", "noise"), [("philox", "gumbel"), ("philox", "normal"), ("threefry_pair", "gumbel")]
)
def test_derivatives_are_the_reference(rng, noise, implementation):
    x = {"a": jnp.array([0.3, -0.2, 0.4]), "b": jnp.array([[0.1, 0.2], [0.5, -0.3]])}

    def fun(x):
        return {
            "one": perturbk.argmax_one_hot(x["a"]),
            "two": (jnp.sign(x["a"]), perturbk.ranking(x["b"])),
        }

    def derivatives(f):
        def loss(key, x):
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(f(key, x)))

        keys = jax.random.split(KEY, 2)
        return {
            "value": f(KEY, x),
            "grad": jax.grad(loss, 1)(KEY, x),
            "jvp": jax.jvp(lambda x: f(KEY, x), (x,), (x,))[1],
            "hessian": jax.hessian(loss, 1)(KEY, x)["a"]["b"],
            "keys": jax.vmap(jax.grad(loss, 1), (0, None))(keys, x),
        }

    f = perturbk.make_perturbed_fun(
        fun, 6, 0.5, NOISES[noise], implementation=implementation, rng=rng
    )

    expected = of_reference(fun, rng, noise, 6)
    assert_relatively_close(*(quick(derivatives, f=g) for g in (f, expected)))


@pytest.mark.parametrize(
    ("rng", "fun"), [("philox", "argmax"), ("philox", "general"), ("threefry_pair", "argmax")]
)
def test_blocks_change_nothing(rng, fun):
    f = perturbk.make_perturbed_fun(FUNS[fun], 40, 0.5, rng=rng)

    def value_and_gradient(x):
        return f(KEY, x), jax.grad(lambda x: jnp.sum(f(KEY, x) ** 2))(x)

    x = normal(1, 3, 70)
    whole = quick(value_and_gradient, x)
    for block in (64, 1000):
        with tuned(block=block, general_block=block, kept_most=0):
            assert_relatively_close(quick(value_and_gradient, x), whole, 1e-5)


@pytest.mark.parametrize("rng", OTHERS)
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_kind(rng, impl, implementation):
    key = jax.random.key(3, impl=impl)
    x = jnp.array([0.3, -0.2, 0.4])
    f = perturbk.make_perturbed_fun(
        perturbk.argmax_one_hot, 200, implementation=implementation, rng=rng
    )
    one, two = quick(lambda key: (f(key, x), f(jax.random.split(key)[0], x)), key)
    assert float(one.sum()) == pytest.approx(1) and not np.array_equal(one, two)
    assert perturbk.explain(f, x, key=key).leaves[0].kernel == f"argmax_gumbel_{rng}"


@pytest.mark.parametrize("rng", OTHERS)
def test_what_it_cannot_draw(rng):
    class Laplace:
        def sample(self, key, shape, dtype):
            return jax.random.laplace(key, shape, dtype)

        def log_prob(self, z):
            return -jnp.abs(z)

    x = jnp.zeros(3)
    with pytest.raises(NotImplementedError, match=rf"rng={rng!r} cannot run.*Laplace.*rng='jax'"):
        perturbk.make_perturbed_fun(jnp.sign, noise=Laplace(), rng=rng)(KEY, x)
    with jax.enable_x64(True), pytest.raises(NotImplementedError, match="float64"):
        perturbk.make_perturbed_fun(jnp.sign, rng=rng)(KEY, np.zeros(3))
    with pytest.raises(ValueError, match=rf"rng must be one of .*'{rng}'.*got 'fast'"):
        perturbk.make_perturbed_fun(jnp.sign, rng="fast")
