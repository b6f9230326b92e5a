"""The primitives: what differentiation, batching and lowering see of the kernels.

With f_s the output and z_s the noise of sample s, `perturbk/fused.py` writes the estimator as

    out = (1/N) sum_s W_s f_s + (1 - mean W) f(x),      W_s = exp(l_s - stop_gradient(l_s))

with l_s the log density of sample s. Four linear maps carry every derivative of it:

    op_sum    W -> sum_s W_s f_s            transposes to  op_dot     g -> <f_s, g>
    score_dot t -> <h_m(z_s) z_s^n, t>      transposes to  score_sum  w -> sum_s w_s h_m(z_s) z_s^n

so that the VJP is op_dot, then score_sum, and needs N numbers in between, whatever the op. Where
what the samples chose is kept, codes_sum and codes_dot take the place of op_sum and op_dot.
`log_density` (value 0, tangent score_dot) ties them to x and sigma. z = (y - x)/sigma with the
sample y held fixed, so that differentiating a moment gives moments of higher order:

    d[h_m z^n] = ((h_{m+1} z^n - n h_m z^{n-1}) dx + (h_{m+1} z^{n+1} - n h_m z^n) dsigma) / sigma

The score primitives carry x and sigma only for this rule; their values do not depend on them. The
family is closed under JVP, transpose and batching, to every order.

All operands have the canonical shapes of `perturbk/kernels/xla.py`; score operands have their leaf
flattened to one axis of length E. Batching appends to `groups` if the keys are mapped, and to
`shared` otherwise, and binds the same primitive again: an inlined batching rule would lose x.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from perturbk import implementations
from perturbk.kernels.ops import keeps_codes, op_math

_FLOAT = np.dtype(np.float32)


def primitive(
    name: str,
    abstract: Callable,
    multiple_results: bool = False,
    run: Callable = implementations.run,
) -> Primitive:
    """A primitive `perturbk_<name>` lowered by run(name, platform, *operands, **params).

    That is, if not told otherwise, by the kernel of that name of an implementation.
    """
    p = Primitive(f"perturbk_{name}")
    p.multiple_results = multiple_results
    p.def_abstract_eval(abstract)

    @functools.lru_cache(maxsize=512)
    def compiled(params: tuple) -> Callable:
        return jax.jit(lambda *operands: p.bind(*operands, **dict(params)))

    @p.def_impl
    def _(*operands, **params):
        with jax.disable_jit(False):  # else jit would only call this function again
            return compiled(tuple(sorted(params.items())))(*operands)

    for platform in implementations.PLATFORMS:
        kernel = functools.partial(run, name, platform)
        rule = mlir.lower_fun(kernel, multiple_results=multiple_results)
        mlir.register_lowering(p, rule, platform=platform)
    batching.primitive_batchers[p] = functools.partial(batch, p)
    return p


def batch(p: Primitive, operands, dims, **params):
    """Rebinds with the mapped axis folded into `groups` (keys mapped) or `shared` (not)."""
    size = next(a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None)
    keys_mapped = dims[0] is not None
    fold = 0 if keys_mapped else 1

    def folded(a, dim):
        # Bring the mapped axis in front of the axis that it is folded into.
        if dim is None:
            a = jnp.broadcast_to(jnp.expand_dims(a, fold), (*a.shape[:fold], size, *a.shape[fold:]))
        else:
            a = jnp.moveaxis(a, dim, fold)
        return a.reshape(*a.shape[:fold], size * a.shape[fold + 1], *a.shape[fold + 2 :])

    keys = folded(operands[0], dims[0]) if keys_mapped else operands[0]
    rest = [folded(a, d) for a, d in zip(operands[1:], dims[1:], strict=True)]

    def unfolded(out):
        shape = (*out.shape[:fold], size, out.shape[fold] // size, *out.shape[fold + 1 :])
        return out.reshape(shape)

    out = p.bind(keys, *rest, **params)
    return jax.tree.map(unfolded, out), jax.tree.map(lambda _: fold, out)


def _num_samples(keys) -> int:
    return keys.shape[-1]


def abstract_samples(keys, x, sigma, *, op, **_):
    math, d = op_math(op), x.shape[-1]
    shape = (*x.shape[:3], *math.code_shape(d), _num_samples(keys))
    return ShapedArray(shape, np.dtype(math.code_dtype(d)))


def abstract_per_sample(keys, x, *_, **__):
    return ShapedArray((*x.shape[:2], _num_samples(keys)), _FLOAT)


def _abstract_like_x(keys, x, *_, **__):
    return ShapedArray(x.shape, _FLOAT)


def _abstract_op_sum(keys, x, *_, op, **__):
    return ShapedArray((*x.shape[:3], op_math(op).out_size(x.shape[-1])), _FLOAT)


samples_p = primitive("samples", abstract_samples)
op_sum_p = primitive("op_sum", _abstract_op_sum)
op_dot_p = primitive("op_dot", abstract_per_sample)
score_dot_p = primitive("score_dot", abstract_per_sample)
score_sum_p = primitive("score_sum", _abstract_like_x)
log_density_p = primitive("log_density", abstract_per_sample)


def is_zero(tangent) -> bool:
    return type(tangent) is ad.Zero


def zero(like: jax.Array) -> ad.Zero:
    """The symbolic zero tangent of a value."""
    return ad.Zero(jax.typeof(like).to_tangent_aval())


def _total(terms: list, like):
    """Sum of tangent terms; a symbolic zero if there is none."""
    return functools.reduce(ad.add_tangents, terms) if terms else zero(like)


# --- samples: integers, so the derivative is zero ------------------------------------------------


def _samples_jvp(primals, tangents, **params):
    del tangents  # f_s is piecewise constant: its own derivative is never used
    out = samples_p.bind(*primals, **params)
    return out, zero(out)


ad.primitive_jvps[samples_p] = _samples_jvp


# --- op_sum and op_dot: linear in their last operand ---------------------------------------------


def _op_sum_jvp(primals, tangents, **params):
    keys, x, sigma, w = primals
    if is_zero(tangents[3]):
        out = op_sum_p.bind(*primals, **params)
        return out, zero(out)
    codes = None
    if keeps_codes(params["op"], int(np.prod(x.shape[:3])), x.shape[-1], _num_samples(keys)):
        codes = samples_p.bind(keys, x, sigma, **params)

    def linear(w: jax.Array) -> jax.Array:
        if codes is None:
            return op_sum_p.bind(keys, x, sigma, w, **params)
        return codes_sum_p.bind(codes, w, op=params["op"], d=x.shape[-1])

    return linear(w), linear(ad.instantiate_zeros(tangents[3]))


def _linear_jvp(p: Primitive):
    """JVP rule of a map with a derivative in its last operand only, in which it is linear."""

    def rule(primals, tangents, **params):
        out = p.bind(*primals, **params)
        if is_zero(tangents[-1]):
            return out, zero(out)
        return out, p.bind(*primals[:-1], tangents[-1], **params)

    return rule


def _linear_transpose(other: Primitive):
    """Transpose rule of a map linear in its last operand only."""

    def rule(ct, *operands, **params):
        *fixed, last = operands
        assert ad.is_undefined_primal(last)
        assert not any(map(ad.is_undefined_primal, fixed))
        out = ad.Zero(last.aval) if is_zero(ct) else other.bind(*fixed, ct, **params)
        return [None] * len(fixed) + [out]

    return rule


ad.primitive_jvps[op_sum_p] = _op_sum_jvp
ad.primitive_jvps[op_dot_p] = _linear_jvp(op_dot_p)
ad.primitive_transposes[op_sum_p] = _linear_transpose(op_dot_p)
ad.primitive_transposes[op_dot_p] = _linear_transpose(op_sum_p)


# --- codes_sum and codes_dot: the same two maps, from codes that were kept ------------------------


def _run_codes(name: str, platform: str, codes, operand, *, op: str, d: int) -> jax.Array:
    """Plain XLA, for every implementation. Fewer codes than operands are shared among them."""
    del platform  # `op_math` asks
    times = operand.shape[1] // codes.shape[1]
    codes = jnp.tile(codes, (1, times, *[1] * (codes.ndim - 2)))
    math = op_math(op)
    return math.weighted(codes, operand, d) if name == "codes_sum" else math.dot(codes, operand)


def _abstract_codes_sum(codes, w, *, op, d):
    return ShapedArray((*w.shape[:2], codes.shape[2], op_math(op).out_size(d)), _FLOAT)


def _abstract_codes_dot(codes, g, **_):
    return ShapedArray((*g.shape[:2], codes.shape[-1]), _FLOAT)


codes_sum_p = primitive("codes_sum", _abstract_codes_sum, run=_run_codes)
codes_dot_p = primitive("codes_dot", _abstract_codes_dot, run=_run_codes)
for _p, _other in ((codes_sum_p, codes_dot_p), (codes_dot_p, codes_sum_p)):
    ad.primitive_jvps[_p] = _linear_jvp(_p)
    ad.primitive_transposes[_p] = _linear_transpose(_other)


# --- log_density, score_dot, score_sum -----------------------------------------------------------


def _log_density_jvp(primals, tangents, **which):
    keys, x, sigma = primals
    _, dx, dsigma = tangents
    out = log_density_p.bind(*primals, **which)
    moment = functools.partial(score_dot_p.bind, keys, x, sigma, order=1, **which)
    terms = []
    if not is_zero(dx):
        terms.append(moment(dx / sigma, power=0))
    if not is_zero(dsigma):
        relative = jnp.broadcast_to(dsigma / sigma, x.shape)
        terms.append(moment(relative, power=1) - jnp.sum(relative, -1, keepdims=True))
    return out, _total(terms, out)


def _higher(which, order: int, power: int, dx, dsigma, sigma, shape):
    """Terms (coefficient array, order, power) of the tangent of h_m z^n; see the module."""
    highest = which["stream"].math(which["noise"]).highest_order
    terms = []
    for tangent, shift in ((dx, 0), (dsigma, 1)):
        if is_zero(tangent):
            continue
        relative = jnp.broadcast_to(tangent / sigma, shape)
        if highest is None or order < highest:
            terms.append((relative, order + 1, power + shift))
        if power > 0:
            terms.append((-power * relative, order, power - 1 + shift))
    return terms


def _score_dot_jvp(primals, tangents, **params):
    out = score_dot_p.bind(*primals, **params)
    return out, score_dot_tangent(primals, tangents, out, **params)


def score_dot_tangent(primals, tangents, out, *, order, power, **which):
    """The tangent of `score_dot`, of whose result `out` only the type is used."""
    keys, x, sigma, v = primals
    _, dx, dsigma, dv = tangents
    bind = functools.partial(score_dot_p.bind, keys, x, sigma, **which)
    terms = [
        bind(v * c, order=m, power=n)
        for c, m, n in _higher(which, order, power, dx, dsigma, sigma, x.shape)
    ]
    if not is_zero(dv):
        terms.append(bind(dv, order=order, power=power))
    return _total(terms, out)


def _score_sum_jvp(primals, tangents, *, order, power, **which):
    keys, x, sigma, w = primals
    _, dx, dsigma, dw = tangents
    bind = functools.partial(score_sum_p.bind, keys, x, sigma, **which)
    out = bind(w, order=order, power=power)
    terms = [
        c * bind(w, order=m, power=n)
        for c, m, n in _higher(which, order, power, dx, dsigma, sigma, x.shape)
    ]
    if not is_zero(dw):
        terms.append(bind(dw, order=order, power=power))
    return out, _total(terms, out)


ad.primitive_jvps[log_density_p] = _log_density_jvp
ad.primitive_jvps[score_dot_p] = _score_dot_jvp
ad.primitive_jvps[score_sum_p] = _score_sum_jvp
ad.primitive_transposes[score_dot_p] = _linear_transpose(score_sum_p)
ad.primitive_transposes[score_sum_p] = _linear_transpose(score_dot_p)
