"""Functions of every kind that JAX traces: optax's numbers, and one program for each.

An eager call traces `fun` anew. JAX and users make new closures and rules each time, which must
not be new programs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export, lax, nn
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from checks import assert_relatively_close, quick_jit
from perturbk import perturbed, ranking
from perturbk.jaxprs import trace
from perturbk.perturbed import make_perturbed_fun

X = np.array([-0.6, 1.9, -0.2, 1.1, -1.0], np.float32)
W = jnp.arange(5.0)
HOST = np.arange(5, dtype=np.float32)
KEY = jax.random.key(3)


def winner(x):
    return nn.one_hot(jnp.argmax(x), x.size)


def while_loop(x):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, x))[1]


def scan(x):
    return lax.scan(lambda c, a: (nn.relu(c + a * W[1]), c), 0.0, x)


def branches(x):
    return lax.switch(jnp.argmax(x), [winner, lambda x: x * W, nn.silu], x)


def own_vjp(x):
    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (f(x), x), lambda x, ct: (ct * W * x,))
    return f(x), winner(f(x))


def own_vjp_of_a_function(x):
    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def apply(f, x):
        return f(x)

    apply.defvjp(lambda f, x: (f(x), x), lambda f, x, ct: (ct * x,))
    return apply(lambda x: x * 3, x)


def own_jvp(x):
    @jax.custom_jvp
    def f(x):
        return jnp.sin(x)

    f.defjvps(lambda t, out, x: t * jnp.cos(x))
    return f(x), jax.jvp(f, (x,), (x,))[1]


def own_batching(x):
    @jax.custom_batching.custom_vmap
    def f(x):
        return x * 2

    f.def_vmap(lambda size, batched, x: (x * 2, True))
    return f(x)


def own_root(x):
    return lax.custom_root(lambda y: y - x, x, lambda f, y: y - f(y), lambda g, y: y)


def own_solve(x):
    return lax.custom_linear_solve(lambda v: 2 * v, x, lambda matvec, b: b / 2, symmetric=True)


def pallas(x):
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] * 2

    block = pl.BlockSpec((1,), lambda i: (i,))
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    run = pl.pallas_call(
        kernel, out, grid=(x.size,), in_specs=[block], out_specs=block, interpret=True
    )
    return run(x)


def host_callback(x):
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(lambda v: np.asarray(v) * 2, out, x, vmap_method="expand_dims")


def side_effect(x):
    jax.debug.callback(lambda v: None, x[0])
    return winner(x)


def random(x):
    return winner(x + jax.random.normal(jax.random.key(0), x.shape))


def mutable(x):
    ref = jax.new_ref(x)
    ref[0] = 9.0
    return winner(ref[...]), winner(x)


def rematerialised(x):
    policy = jax.checkpoint_policies.save_only_these_names("sine")
    f = jax.checkpoint(lambda x: jnp.sin(checkpoint_name(jnp.sin(x), "sine")), policy=policy)
    return f(x), jax.checkpoint(winner)(x)


def closures(x):
    return x * HOST, x * W, x * W[2], x * np.float32(2), jax.jit(lambda x: x * HOST)(x)


def constants(x):
    return W, HOST, np.ones(2, bool), 1.5, 3, True, 1j, np.float32(2), None, ()


def repeats(x):
    y = winner(x)
    return {"x": x, "y": [y, y, x], "index": jnp.argmax(x), "mask": x > 0, "max": jnp.max(x)}


def nested(x):
    return make_perturbed_fun(winner, 3)(KEY, x)


def complex_output(x):
    return x + 1j


FUNS = [
    while_loop,
    scan,
    branches,
    own_vjp,
    own_vjp_of_a_function,
    own_jvp,
    own_batching,
    own_root,
    own_solve,
    pallas,
    host_callback,
    side_effect,
    random,
    mutable,
    rematerialised,
    closures,
    constants,
    repeats,
    nested,
    complex_output,
]


@pytest.mark.parametrize("fun", FUNS, ids=lambda f: f.__name__)
def test_numbers_are_those_of_optax(fun):
    def results(make):
        f = make(fun, 8, 0.5)

        def loss(x):
            return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(f(KEY, x)))

        return quick_jit(lambda x: (f(KEY, x), jax.grad(loss)(x)))(X)

    expected = results(optax.perturbations.make_perturbed_fun)
    assert_relatively_close(results(make_perturbed_fun), expected)


@pytest.mark.parametrize("fun", FUNS, ids=lambda f: f.__name__)
def test_traced_twice_is_one_program(fun):
    first, second = trace(fun, X)[0], trace(fun, X)[0]
    assert first == second and hash(first) == hash(second)


def test_eager_calls_compile_once():
    def call():
        return make_perturbed_fun(lambda x: (own_vjp(x), nn.relu(x) * W), 4)(KEY, X)

    call()
    before = perturbed._run_jitted._cache_size()
    call()
    assert perturbed._run_jitted._cache_size() == before


def test_rules_that_differ_in_what_they_close_over_are_not_confused():
    def slope(scale):
        @jax.custom_vjp
        def f(y):
            return y * 1

        f.defvjp(lambda y: (f(y), None), lambda _, ct: (ct * scale,))
        return float(
            jax.grad(lambda w: make_perturbed_fun(lambda x: f(x * w), 4)(KEY, X).sum())(1.0)
        )

    assert slope(2.0) == 2 * slope(1.0) != 0
    assert slope({"a": [2.0]}["a"][0]) == slope(2.0)
    assert slope(W[2]) == slope(2.0)


def test_arrays_changed_in_place_are_read_anew():
    scale = np.ones(5, np.float32)
    f = make_perturbed_fun(lambda x: (x * scale, jax.jit(lambda x: x * scale)(x)), 4)
    before = f(KEY, X)
    scale[:] = 2
    assert_relatively_close(f(KEY, X), jax.tree.map(lambda y: 2 * y, before))


def test_outputs_must_be_numbers():
    with pytest.raises(TypeError, match=r"fun must return numbers.*output\['k'\].*key<fry>"):
        make_perturbed_fun(lambda x: {"k": jax.random.key(jnp.argmax(x))})(KEY, X)


def test_symbolic_shapes():
    def exported(make):
        f = make(ranking, 100, 0.5)
        gradient = jax.grad(lambda key, x: jnp.sum(f(key, x) ** 2), 1)
        (n,) = export.symbolic_shape("n")
        x = jax.ShapeDtypeStruct((3, n), jnp.float32)
        return [export.export(jax.jit(g))(KEY, x) for g in (f, gradient)]

    theirs = exported(optax.perturbations.make_perturbed_fun)
    for ours, reference in zip(exported(make_perturbed_fun), theirs, strict=True):
        for n in (1, 6):
            x = jnp.sin(jnp.arange(3.0 * n)).reshape(3, n)
            assert_relatively_close(ours.call(KEY, x), reference.call(KEY, x))
    with pytest.raises(NotImplementedError, match=r"symbolic shape \(3, n\)"):
        exported(functools.partial(make_perturbed_fun, implementation="pallas"))
