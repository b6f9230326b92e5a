"""The body of the argmax kernel on another lowering: Mosaic GPU, by its interpreter.

It takes whole arrays, so that the block of a program is cut inside, and every program is the first
to it, so that the grid has only one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from perturbk.kernels import pallas, pallas_ops, threefry, xla

mosaic_gpu = pytest.importorskip("jax.experimental.pallas.mosaic_gpu")
if not hasattr(mosaic_gpu, "InterpretGPUParams"):
    pytest.skip("this jax has no public interpreter of Mosaic GPU", allow_module_level=True)

PALLAS_CALL = pl.pallas_call


def on_mosaic_gpu(body, *, grid, in_specs, out_specs, out_shape, name, **_):
    """`pl.pallas_call` of a kernel without scratch."""
    assert set(grid) == {1}, "this interpreter's program_id is always 0"
    many = isinstance(out_specs, (list, tuple))
    specs = [*in_specs, *(out_specs if many else [out_specs])]

    def of_whole_arrays(*refs):
        ids = [pl.program_id(axis) for axis in range(len(grid))]
        body(*(_block(ref, spec, ids) for ref, spec in zip(refs, specs, strict=True)))

    whole = pl.BlockSpec(memory_space=mosaic_gpu.GMEM)
    return PALLAS_CALL(
        of_whole_arrays,
        grid=grid,
        in_specs=[whole] * len(in_specs),
        out_specs=[whole] * len(out_specs) if many else whole,
        out_shape=out_shape,
        interpret=mosaic_gpu.InterpretGPUParams(),
        name=name,
    )


def _block(ref, spec, ids):
    """What a program sees of an array: its block, by the spec's index map."""
    index = []
    for i, size in zip(spec.index_map(*ids), spec.block_shape, strict=True):
        index.append(i if size is None else pl.ds(i * size, size))
    return ref.at[tuple(index)]


@pytest.mark.parametrize("noise", ["gumbel", "normal"])
def test_winners(monkeypatch, noise):
    launched = []

    def pallas_call(body, **kwargs):
        launched.append(kwargs["name"])
        return on_mosaic_gpu(body, **kwargs)

    num_samples, d = 110, 37  # not multiples of a tile, and one program
    keys = threefry.leaf_keys(jax.random.key_data(jax.random.key(0)), num_samples, 0)[None]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 1, d)), jnp.float32)
    sigma = jnp.full((1, 1, 1, d), 0.7)
    static: dict[str, Any] = dict(op="argmax", noise=noise, inner=1)
    expected = xla.samples(keys, x, sigma, **static)
    monkeypatch.setattr(pallas.pl, "pallas_call", pallas_call)
    found = pallas_ops.samples(keys, x, sigma, platform="cpu", **static)
    assert launched == [f"perturbk_argmax_samples_{noise}"]
    assert len(np.unique(found)) > 5
    np.testing.assert_array_equal(found, expected)
