"""More than 2**32 noise elements: counters belong to one sample of one leaf, and do not wrap."""

import jax
import jax.numpy as jnp
import numpy as np

import perturbk


def test_winners_beyond_element_two_to_the_32():
    size, num_samples = 1 << 21, (1 << 11) + 1
    key, x = jax.random.key(0), np.zeros(size, np.float32)
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, num_samples, 0.5)
    wins = np.rint(num_samples * np.asarray(jax.jit(f)(key, x)))
    assert wins.sum() == num_samples

    @jax.jit
    def winner(sample_key):
        return jnp.argmax(jax.random.gumbel(jax.random.split(sample_key, 1)[0], (size,)))

    # Any other winners would be among these by a chance of 1 in 1000 each.
    sample_keys = jax.random.split(key, num_samples)
    for sample in (0, num_samples // 2, num_samples - 2, num_samples - 1):
        assert wins[winner(sample_keys[sample])] >= 1


def test_leaves_of_more_than_two_to_the_31_elements_lower(implementation):
    x = jax.ShapeDtypeStruct((1 << 12, (1 << 20) - 1), jnp.float32)
    f = perturbk.make_perturbed_fun(perturbk.argmax_one_hot, 10, 0.5, implementation=implementation)
    gradient = jax.grad(lambda x: jnp.sum(f(jax.random.key(0), x) ** 2))
    assert perturbk.explain(f, x).leaves[0].kernel
    assert jax.jit(gradient).lower(x).out_info.shape == x.shape
