"""Programs in canonical form: keys that are equal where programs are, and what is closed over."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn

from perturbk.jaxprs import canonical, trace

N = 5
X = jnp.zeros(N)


def test_equal_programs_are_equal_keys():
    def first(a, scale=2.0):
        c = jnp.sin(a)
        return c * scale

    def key(f):
        return trace(f, X)[0]

    assert key(first) == key(lambda y: jnp.sin(y) * 2.0)
    assert hash(key(first)) == hash(key(lambda y: jnp.sin(y) * 2.0))
    assert key(first) != key(lambda y: jnp.sin(y) * 3.0)
    assert key(lambda y: y + 0.0) != key(lambda y: y + -0.0)
    assert key(lambda y: y + np.nan) == key(lambda y: y + np.nan)
    assert key(first) != trace(first, jnp.zeros(N + 1))[0]
    jitted = [canonical(jax.make_jaxpr(f)(X), inline=True) for f in (first, jax.jit(first))]
    assert jitted[0] == jitted[1]


def test_constants_of_nested_calls_are_part_of_the_key():
    def key(value):
        array = np.full(N, value, np.float32)
        return trace(lambda x: jax.jit(lambda x: x + array)(x), X)[0]

    assert key(1.0) == key(1.0) and key(1.0) != key(2.0)


def test_derivative_rules_are_part_of_the_key():
    def key(rule):
        f = jax.custom_jvp(lambda x: x * 2)
        f.defjvp(rule)
        return trace(lambda x: f(x), X)[0]

    one, two = [lambda p, t: (p[0] * 2, t[0] * 1), lambda p, t: (p[0] * 2, t[0] * 2)]
    assert key(one) != key(two)
    # Without this, an eager call whose fun contains a relu would compile anew each time.
    assert trace(lambda x: nn.relu(x), X)[0] == trace(lambda x: nn.relu(x), X)[0]


def test_closed_over_tracers_are_consts():
    def value(w, x):
        traced, consts, tree = trace(lambda x: {"y": x * w}, x)
        assert len(consts) == 1
        run = jax.jit(lambda traced, *args: traced(*args), static_argnums=0)
        return jax.tree.unflatten(tree, run(traced, consts, x))["y"].sum()

    w, x = jnp.arange(3.0), jnp.full(3, 2.0)
    assert jax.jit(value)(w, x) == 6.0
    np.testing.assert_array_equal(jax.grad(value)(w, x), x)
    np.testing.assert_array_equal(jax.jit(jax.grad(value))(w, x), x)
    np.testing.assert_array_equal(jax.vmap(value, (0, None))(jnp.eye(3), x), np.full(3, 2.0))


def test_changed_state_is_traced_anew():
    state = {"w": jnp.ones(N)}

    def fun(x):
        return x * state["w"]

    _, before, _ = trace(fun, X)
    state["w"] = jnp.zeros(N)
    _, after, _ = trace(fun, X)
    assert before[0][0] == 1 and after[0][0] == 0
