"""Value and tangent from one pass over the noise: `samples` and `score_dot` as one primitive.

Forward mode needs both at once, for the same noise, and a kernel can give both. Reverse mode needs
the samples first and the transpose of the other later: under partial evaluation, under dead code
elimination, and where only the tangent is mapped, the pair falls apart into its two primitives.
"""

from __future__ import annotations

from jax.extend.core import Var
from jax.interpreters import ad, batching
from jax.interpreters import partial_eval as pe

from perturbk.primitives import (
    abstract_per_sample,
    abstract_samples,
    batch,
    primitive,
    samples_p,
    score_dot_p,
    score_dot_tangent,
    zero,
)

try:
    # The rule for `linearize` and `grad`, of which there is no public name.
    from jax._src.interpreters.partial_eval import custom_partial_eval_rules
except ImportError:
    custom_partial_eval_rules = None

# Whether the pair may be used: without that rule, no derivative of it would be linear.
AVAILABLE = custom_partial_eval_rules is not None


def _abstract(keys, x, sigma, leaf, *_, op, inner, **which):
    codes = abstract_samples(keys, x, sigma, op=op, inner=inner, **which)
    return [codes, abstract_per_sample(keys, leaf)]


# (keys, x, sigma as for `samples`; x, sigma, t as for `score_dot`) -> (codes, <h_1(z), t>).
samples_and_dot_p = primitive("samples_and_dot", _abstract, multiple_results=True)


def _params(op, inner, **which) -> tuple[dict, dict]:
    """Those of `samples` and those of `score_dot`."""
    return dict(which, op=op, inner=inner), dict(which, order=1, power=0)


def _jvp(primals, tangents, **params):
    codes, dot = samples_and_dot_p.bind(*primals, **params)
    keys, _, _, *leaf = primals
    _, score_params = _params(**params)
    tangent = score_dot_tangent((keys, *leaf), (None, *tangents[3:]), dot, **score_params)
    return [codes, dot], [zero(codes), tangent]


def _batch(operands, dims, **params):
    *fixed, t_dim = dims
    if any(dim is not None for dim in fixed):
        return batch(samples_and_dot_p, operands, dims, **params)
    # Several tangents of one sample: the codes are found once.
    keys, x, sigma, *leaf = operands
    of_samples, of_score = _params(**params)
    codes = samples_p.bind(keys, x, sigma, **of_samples)
    dot, dim = batch(score_dot_p, (keys, *leaf), (None, None, None, t_dim), **of_score)
    return (codes, dot), (None, dim)


def _partial_eval(trace, *tracers, **params):
    """Of tracers, some of whose values are known only later."""
    if all(tracer.is_known() for tracer in tracers):
        return trace.default_process_primitive(samples_and_dot_p, tracers, params)
    keys, x, sigma, *leaf = tracers
    of_samples, of_score = _params(**params)
    codes = trace.default_process_primitive(samples_p, [keys, x, sigma], of_samples)
    return codes, trace.default_process_primitive(score_dot_p, [keys, *leaf], of_score)


def _apart(eqn):
    """The equations of the two primitives."""
    keys, x, sigma, *leaf = eqn.invars
    codes, dot = eqn.outvars
    of_samples, of_score = _params(**eqn.params)
    samples = eqn.replace(
        primitive=samples_p, invars=[keys, x, sigma], outvars=[codes], params=of_samples
    )
    score = eqn.replace(primitive=score_dot_p, invars=[keys, *leaf], outvars=[dot], params=of_score)
    return samples, score


def _partial_eval_jaxpr(saveable, unknown, instantiated, eqn):
    """(known equation, staged equation, unknown outputs, instantiated outputs, residuals)."""
    del saveable  # what is known is computed again, or dropped where it is not used
    samples, score = _apart(eqn)
    if not any(unknown):
        known, staged, late = eqn, eqn, [False, False]
    elif any(unknown[:3]):
        known, staged, late = None, eqn, [True, True]
    else:
        known, staged, late = samples, score, [False, True]
    used = zip(eqn.invars, instantiated, strict=True)
    missing = {v for v, at_hand in used if isinstance(v, Var) and not at_hand}
    residuals = [v for v in staged.invars if isinstance(v, Var) and v in missing]
    return known, staged, late, [known is not samples, True], residuals


def _without_dead_code(used, *rest):
    *_, eqn = rest  # JAX 0.12 says before it which inputs are live
    samples, score = _apart(eqn)
    if all(used):
        return [True] * 6, eqn
    if used[0]:
        return [True] * 3 + [False] * 3, samples
    if used[1]:
        return [True, False, False, True, True, True], score
    return [False] * 6, None


ad.primitive_jvps[samples_and_dot_p] = _jvp
batching.primitive_batchers[samples_and_dot_p] = _batch
pe.partial_eval_jaxpr_custom_rules[samples_and_dot_p] = _partial_eval_jaxpr
pe.dce_rules[samples_and_dot_p] = _without_dead_code
if custom_partial_eval_rules is not None:
    custom_partial_eval_rules[samples_and_dot_p] = _partial_eval
