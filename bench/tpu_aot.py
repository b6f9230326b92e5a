"""Compiling for a TPU without one: libtpu holds the compiler, and a topology names the chip.

`prepare()` must run before jax is imported, since libtpu reads its environment once.
"""

from __future__ import annotations

import os
from collections.abc import Callable

# Chip generations, by the smallest topology that libtpu knows of each.
TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}


def prepare(dump: str | None = None) -> None:
    """Sets the environment for libtpu on a machine that has no TPU.

    Args:
        dump: folder for the compiler's final schedule of every program; none if absent.
    """
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_LOG_DIR="disabled",
        TPU_STDERR_LOG_LEVEL="3",
        TPU_MIN_LOG_LEVEL="3",
    )
    if dump is not None:
        os.environ["LIBTPU_INIT_ARGS"] = (
            f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
            " --xla_jf_dump_llo_pass_label_regex=.*final_.*"
        )


def compile_for(chip: str, f: Callable, *shapes):
    """`f` compiled for one device of a chip generation; shapes are `jax.ShapeDtypeStruct`s."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, SingleDeviceSharding, use_abstract_mesh

    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    device = topology.devices[0]
    here = SingleDeviceSharding(device)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for a in shapes]
    mesh = Mesh(np.array([device]), ("_",), axis_types=(AxisType.Auto,))
    with use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.jit(f, out_shardings=here).trace(*shapes)
        return traced.lower(lowering_platforms=("tpu",)).compile()
