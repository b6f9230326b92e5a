"""Functions without a kernel: closures, mixed trees, and blocks of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import perturbk
from checks import assert_bit_equal, assert_relatively_close, quick, quick_jit, tuned

X = np.array([0.3, -0.2, 0.4], np.float32)
W = np.array([1.5, -0.5, 0.7], np.float32)
KEY = jax.random.key(0)


class Laplace:
    """A noise that no kernel draws."""

    def sample(self, key, shape, dtype):
        return jax.random.laplace(key, shape, dtype)

    def log_prob(self, z):
        return -jnp.abs(z)


def both(implementation):
    """The two libraries' make_perturbed_fun, ours first."""

    def ours(fun, **options):
        return perturbk.make_perturbed_fun(fun, implementation=implementation, **options)

    return ours, optax.perturbations.make_perturbed_fun


def closing_over(w):
    """Two leaves, of which the first is an argmax; the other depends on w, smoothly."""

    def fun(x):
        winner = jax.nn.one_hot(jnp.argmax(x), x.size)
        return {"known": winner, "other": jnp.where(w * x > 0.1, jnp.sin(w), x**2)}

    return fun


def in_w(make, num_samples=7):
    """Derivatives with respect to a value that `fun` closes over, and mixed ones."""

    def loss(w, x, key=KEY):
        f = make(closing_over(w), num_samples=num_samples, sigma=0.5)
        out = f(key, x)
        return jnp.sum(out["other"] ** 2) + jnp.vdot(out["known"], w)

    ws = jnp.stack([W, 2 * W])
    return {
        "grad": jax.grad(loss)(W, X),
        "jvp": jax.jvp(lambda w: loss(w, X), (W,), (X,))[1],
        "mixed": jax.jacfwd(jax.grad(loss), 1)(W, X),
        "mixed_other_way": jax.jacrev(jax.grad(loss, 1))(W, X),
        "second": jax.hessian(loss)(W, X),
        "vmap_w": jax.vmap(jax.grad(loss), (0, None))(ws, X),
        "vmap_keys": jax.vmap(jax.grad(loss), (None, None, 0))(W, X, jax.random.split(KEY)),
        "grad_of_vmap": jax.grad(lambda ws: jax.vmap(loss, (0, None))(ws, X).sum())(ws),
    }


def test_gradients_flow_into_values_closed_over(implementation):
    ours, theirs = both(implementation)
    found, expected = quick(lambda: [in_w(make) for make in (ours, theirs)])
    assert_relatively_close(found, expected)


def test_gradients_into_closures_of_several_blocks():
    ours, theirs = both("xla")
    expected = quick(in_w, make=theirs, num_samples=8)
    with tuned(general_block=6, residual_bytes=0):  # two samples at a time, nothing kept
        found = quick(in_w, make=ours, num_samples=8)
    assert_relatively_close(found, expected)


def test_closures_outside_jit(implementation):
    ours, theirs = both(implementation)
    found, expected = (
        jax.grad(lambda w, make=make: jnp.sum(make(lambda x: w * x, num_samples=3)(KEY, X) ** 2))(W)
        for make in (ours, theirs)
    )
    assert_relatively_close(found, expected)


def never_differentiated():
    @jax.custom_jvp
    def f(x):
        return jnp.sort(x)

    @f.defjvp
    def _(primals, tangents):
        raise AssertionError("the derivative of fun was asked for")

    @jax.custom_vjp
    def g(x):
        return jnp.cumsum(x)

    def no(*_):
        raise AssertionError("the derivative of fun was asked for")

    g.defvjp(no, no)

    @jax.custom_jvp
    def argmax(x):
        return jax.nn.one_hot(jnp.argmax(x), x.size)

    argmax.defjvp(no)
    return lambda x: (f(x), g(x), argmax(x))


def test_derivative_of_fun_is_never_asked_for(implementation):
    found, expected = (
        quick_jit(
            lambda x, make=make: (
                jax.jacfwd(lambda x: make(never_differentiated(), num_samples=5)(KEY, x))(x),
                jax.jacrev(lambda x: make(never_differentiated(), num_samples=5)(KEY, x))(x),
                jax.hessian(lambda x: make(never_differentiated(), num_samples=5)(KEY, x)[0])(x),
            )
        )(X)
        for make in both(implementation)
    )
    assert_relatively_close(found, expected)


def test_identity_is_estimated_not_differentiated(implementation):
    ours, theirs = both(implementation)
    identities = [make(lambda x: x, num_samples=50) for make in (ours, theirs)]
    found, expected = quick(lambda x: [jax.jacobian(f, 1)(KEY, x) for f in identities], X)
    assert_relatively_close(found, expected)
    assert np.max(np.abs(found - np.eye(3))) > 0.05


@pytest.mark.parametrize("num_samples", [1, 2, 5])
def test_loops_and_integers_have_derivatives(implementation, num_samples):
    def fun(x):
        count = jax.lax.while_loop(lambda i: i < jnp.sum(x > 0), lambda i: i + 1, 0)
        return {"count": count, "mask": x > 0, "none": None, "number": 2.0, "cube": x**3}

    found, expected = (
        quick_jit(
            lambda x, make=make: jax.value_and_grad(
                lambda x: sum(
                    map(
                        jnp.sum,
                        jax.tree.leaves(make(fun, num_samples=num_samples, sigma=0.5)(KEY, x)),
                    )
                )
            )(x)
        )(X)
        for make in both(implementation)
    )
    assert_relatively_close(found, expected)


def test_blocks_of_samples_change_nothing_but_rounding():
    def derivatives():
        f = perturbk.make_perturbed_fun(jnp.cumsum, num_samples=11, sigma=0.5)
        return quick(lambda x: (f(KEY, x), jax.jacfwd(f, 1)(KEY, x), jax.hessian(f, 1)(KEY, x)), X)

    whole = derivatives()
    for block in (3, 12):  # one sample; four, of which the last block has three
        with tuned(kept_most=0, general_block=block):
            assert_relatively_close(derivatives(), whole, 1e-6)


@pytest.mark.parametrize("fun", [lambda x: 3 * jnp.ones(2), lambda x: jnp.argsort(x[:1])])
def test_constant_functions_have_a_gradient_of_exactly_zero(implementation, fun):
    f = perturbk.make_perturbed_fun(fun, num_samples=9, implementation=implementation)
    for jacobian in (jax.jacfwd, jax.jacrev):
        found = quick(jacobian(f, 1), KEY, X)
        assert_bit_equal(found, np.zeros((len(found), 3), np.float32))


@pytest.mark.parametrize("op", [perturbk.argmax_one_hot, perturbk.ranking])
def test_rows_of_one_entry_have_a_gradient_of_exactly_zero(implementation, op):
    x = np.random.default_rng(0).normal(size=(9, 9, 1)).astype(np.float32)
    f = perturbk.make_perturbed_fun(op, num_samples=140, implementation=implementation)
    tangent = quick(lambda x: jax.jvp(lambda x: f(KEY, x), (x,), (x,))[1], x)
    (cotangent,) = quick(lambda x: jax.vjp(lambda x: f(KEY, x), x)[1](x), x)
    assert_bit_equal((tangent, cotangent), (np.zeros_like(x), np.zeros_like(x)))


def test_none_leaves(implementation):
    x = {"a": X, "b": None, "c": ()}
    found, expected = (
        make(lambda x: [x, None], num_samples=4)(KEY, x) for make in both(implementation)
    )
    assert_relatively_close(found, expected)
    assert both(implementation)[0](lambda x: {"a": None})(KEY, X) == {"a": None}


@pytest.mark.parametrize("empty", [{}, None, [()]])
def test_empty_trees(empty):
    ours, theirs = both(None)
    assert ours(lambda x: x)(KEY, empty) == empty
    found, expected = (make(lambda x: jnp.arange(3))(KEY, empty) for make in (ours, theirs))
    assert_bit_equal(found, expected)
    with pytest.raises(NotImplementedError, match="x has no leaves"):
        both("pallas")[0](lambda x: x)(KEY, empty)


@pytest.mark.parametrize("noise", [perturbk.Gumbel(), Laplace()], ids=["counted", "drawn"])
@pytest.mark.parametrize("shape", [(16, 100, 1000), (32, 50, 1000)], ids=str)
def test_gradients_of_a_batch_are_those_of_its_rows(shape, noise):
    """optax's are not, at these shapes, with jax 0.10 on a CPU: XLA fuses them wrongly."""
    batch, d, num_samples = shape
    x = jax.random.normal(KEY, (batch, d))
    keys = jax.random.split(KEY, batch)
    f = perturbk.make_perturbed_fun(jnp.sign, num_samples, 0.5, noise)

    def gradient(key, x):
        return jax.grad(lambda x: jnp.vdot(f(key, x), jnp.cos(jnp.arange(d))))(x)

    rows = jax.jit(gradient)
    expected = np.stack([rows(*row) for row in zip(keys, x, strict=True)])
    assert_relatively_close(jax.jit(jax.vmap(gradient))(keys, x), expected)


def test_large_leaf_of_several_blocks_of_one_sample(implementation):
    x = np.linspace(0, 1, 3000, dtype=np.float32)
    found, expected = (
        quick(make(lambda x: jnp.cumsum(x) / x.size, num_samples=30), KEY, x)
        for make in both(implementation)
    )
    assert_relatively_close(found, expected)


def test_state_is_read_at_each_call():
    state = {"w": 1.0}
    f = perturbk.make_perturbed_fun(lambda x: state["w"] * jnp.ones(1), num_samples=2)
    assert f(KEY, X) == 1
    state["w"] = 2.0
    assert f(KEY, X) == 2
