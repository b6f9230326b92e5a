"""Every bad argument gets an error that names it, says what came, and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturbk

KEY = jax.random.key(0)
X = np.arange(4, dtype=np.float32)


class NoLogProb:
    def sample(self, key, shape, dtype):
        return jnp.zeros(shape, dtype)


class Flat(NoLogProb):
    def log_prob(self, z):
        return 0 * z


def call(fun=perturbk.argmax_one_hot, key=KEY, x=X, **options):
    return perturbk.make_perturbed_fun(fun, **options)(key, x)


OPTIONS = {  # what is wrong: (options, error, what it says)
    "fun": (dict(fun=3), TypeError, "fun must be callable, got 3"),
    "no_samples": (dict(num_samples=0), ValueError, "num_samples must be at least 1, got 0"),
    "negative_samples": (dict(num_samples=-1), ValueError, "num_samples .* at least 1, got -1"),
    "float_samples": (dict(num_samples=1.5), TypeError, "num_samples .* int, got 1.5.*close over"),
    "bool_samples": (dict(num_samples=True), TypeError, "num_samples .* int, got True"),
    "sigma_zero": (dict(sigma=0.0), ValueError, "sigma must be positive.*got 0.0.*call fun"),
    "sigma_negative": (dict(sigma=-1), ValueError, "sigma must be positive.*got -1"),
    "sigma_nan": (dict(sigma=np.nan), ValueError, "sigma must be .*finite, got nan"),
    "sigma_infinite": (dict(sigma=jnp.inf), ValueError, "sigma must be .*finite, got inf"),
    "sigma_partly": (dict(sigma=np.array([1, 0.0])), ValueError, r"sigma must .*got \[1. 0.\]"),
    "sigma_complex": (dict(sigma=1j), TypeError, "sigma must be a real .*got dtype complex64"),
    "sigma_bool": (dict(sigma=True), TypeError, "sigma must be a real .*got dtype bool"),
    "sigma_none": (dict(sigma=None), TypeError, "sigma must be a real .*got None"),
    "sigma_string": (dict(sigma="0.1"), TypeError, "sigma must be a real .*got '0.1'"),
    "noise_none": (dict(noise=None), TypeError, "noise must have .*None has no sample.*Gumbel()"),
    "noise_class": (
        dict(noise=perturbk.Gumbel),
        TypeError,
        r"noise must be an instance, got the class; pass Gumbel\(\)",
    ),
    "noise_without_log_prob": (
        dict(noise=NoLogProb()),
        TypeError,
        "noise must have .*NoLogProb.* has no log_prob.*Pass an object such as",
    ),
    "implementation": (
        dict(implementation="cuda"),
        ValueError,
        r"implementation must be None or one of \['xla', 'pallas'.*got 'cuda'",
    ),
}

CALLS = {
    "sigma_too_short": (
        dict(sigma=np.ones(3)),
        ValueError,
        r"sigma must be a scalar or broadcast .*got sigma of shape \(3,\) for x of shape \(4,\)",
    ),
    "sigma_too_deep": (dict(sigma=np.ones((2, 4))), ValueError, r"sigma .*\(2, 4\) for x of"),
    "sigma_for_one_leaf": (
        dict(sigma=np.ones(4), x={"a": X, "b": [X[:2]]}),
        ValueError,
        r"sigma .*for x\['b'\]\[0\] of shape \(2,\)",
    ),
    "integer_x": (dict(x=np.arange(4)), TypeError, r"x must have a floating dtype, got int"),
    "bool_x": (dict(x=X > 0), TypeError, r"x must have a floating dtype, got bool\[4\].*convert"),
    "integer_leaf": (
        dict(x={"a": [X, np.arange(3)]}),
        TypeError,
        r"x\['a'\]\[1\] must have a floating dtype, got int.*close over it",
    ),
    "complex_x": (dict(x=1j * X), TypeError, "x must have a floating dtype, got complex64"),
    "string_x": (dict(x="text"), TypeError, "x must be an array, got 'text'"),
    "empty_axis": (dict(x=np.ones((2, 0))), ValueError, r"x has an empty axis: shape \(2, 0\)"),
    "empty_leaf": (dict(x=[X, X[:0]]), ValueError, r"x\[1\] has an empty axis"),
    "array_of_keys": (
        dict(key=jax.random.split(KEY, 3)),
        ValueError,
        r"key must be one key, got an array of keys of shape \(3,\).*jax.vmap",
    ),
    "legacy_keys": (
        dict(key=np.zeros((3, 2), np.uint32)),
        ValueError,
        r"key must be one legacy key of shape \(2,\).*got shape \(3, 2\).*jax.vmap",
    ),
    "key_of_another_shape": (dict(key=np.zeros(4, np.uint32)), ValueError, r"key .*shape \(4,\)"),
    "float_key": (dict(key=np.ones(2)), TypeError, r"key must be a JAX random key.*got float"),
    "integer_key": (dict(key=0), TypeError, r"key must .*such as jax.random.key\(0\), got 0"),
    "arguments_swapped": (dict(key=X, x=KEY), TypeError, "key must be a JAX random key"),
    "pallas_with_rbg": (
        dict(implementation="pallas", key=jax.random.key(0, impl="rbg")),
        NotImplementedError,
        "implementation='pallas' .*generator is 'rbg'.*Use implementation=None",
    ),
    "triton_with_rbg": (
        dict(implementation="triton", key=jax.random.key(0, impl="rbg")),
        NotImplementedError,
        "implementation='triton' .*generator is 'rbg'.*Use implementation=None",
    ),
    "triton_on_a_cpu": (
        dict(implementation="triton"),
        NotImplementedError,
        "implementation='triton' .*CUDA and ROCm only, and this is 'cpu'. Use implementation=None",
    ),
    "pallas_with_another_noise": (
        dict(implementation="pallas", noise=Flat()),
        NotImplementedError,
        "implementation='pallas' .*no kernel draws Flat noise.*Use implementation=None",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    options, error, match = OPTIONS[name]
    with pytest.raises(error, match=match):
        perturbk.make_perturbed_fun(**{"fun": perturbk.argmax_one_hot, **options})


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_calls(name, jit):
    arguments, error, match = CALLS[name]
    if not jit:
        with pytest.raises(error, match=match):
            call(**arguments)
    elif name not in ("string_x", "integer_key"):  # jit itself raises, or makes an array
        arguments = {"key": KEY, "x": X, **arguments}
        key, x = arguments.pop("key"), arguments.pop("x")
        with pytest.raises(error, match=match):
            jax.jit(lambda key, x: call(key=key, x=x, **arguments))(key, x)


def test_float64_under_pallas():
    with jax.enable_x64(True), pytest.raises(NotImplementedError, match="x is float64"):
        call(implementation="pallas", x=X.astype(np.float64))


def test_traced_num_samples():
    with pytest.raises(TypeError, match=r"num_samples .* int, got .*close over"):
        jax.jit(lambda n: call(num_samples=n))(3)


def test_traced_sigma_is_not_judged():
    # A traced value cannot be seen; the value, whatever it is, does not depend on it here.
    assert jax.jit(lambda sigma: call(sigma=sigma, x=X[:1]))(0.0) == 1


def test_errors_of_fun_pass_through():
    with pytest.raises(KeyError, match="missing"):
        call(lambda x: x["missing"], x={"a": X})


def test_explain():
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot)
    with pytest.raises(TypeError, match=r"f must come from .*make_perturbed_fun, got"):
        perturbk.explain(perturbk.argmax_one_hot, X)
    with pytest.raises(ValueError, match=r"platform must be one of \['cpu', .*got 'quantum'"):
        perturbk.explain(f, X, platform="quantum")
    with pytest.raises(TypeError, match="key must be a JAX random key"):
        perturbk.explain(f, X, key=3)
    with pytest.raises(TypeError, match="x must have a floating dtype"):
        perturbk.explain(f, np.arange(3))
