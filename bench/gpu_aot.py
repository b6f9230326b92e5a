"""Compiling for a GPU without one: JAX's CUDA plugin compiles, ptxas of the triton wheel assembles.

`prepare()` must run before jax is imported, since XLA reads its flags once.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

# What XLA asks of a device that is not there: an H200, as it describes itself.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 150754820096 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""

# Keeps what ptxas assembles: the option after -o names the file.
_PTXAS = """#!/bin/sh
{ptxas} "$@" || exit $?
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then cp "$2" "$(mktemp -u {kept}/XXXXXXXX).cubin"; fi
    shift
done
"""


def nvidia_tools() -> Path:
    """Folder with ptxas and cuobjdump, from the triton wheel."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def prepare(folder: Path) -> Path:
    """Makes a CUDA installation of links in `folder`; returns where the machine code will lie."""
    tools, kept = nvidia_tools(), folder / "kept"
    libdevice = next((tools.parent / "lib").glob("libdevice*.bc"))
    for part in (kept, folder / "bin", folder / "nvvm" / "libdevice"):
        part.mkdir(parents=True)
    (folder / "nvvm" / "libdevice" / "libdevice.10.bc").symlink_to(libdevice)
    ptxas = folder / "bin" / "ptxas"
    ptxas.write_text(
        _PTXAS.format(ptxas=shlex.quote(str(tools / "ptxas")), kept=shlex.quote(str(kept)))
    )
    ptxas.chmod(0o755)
    os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS=f"--xla_gpu_cuda_data_dir={folder}")
    return kept


def compile_for_h200(f: Callable, *shapes):
    """`f` compiled for an H200; shapes are `jax.ShapeDtypeStruct`s."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding, use_abstract_mesh

    topology = topologies.get_topology_desc(platform="cuda", target_config=_H200, topology="1x1x1")
    here = SingleDeviceSharding(topology.devices[0])
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for a in shapes]
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("_",), abstract_device=device)):
        traced = jax.jit(f, out_shardings=here).trace(*shapes)
        return traced.lower(lowering_platforms=("cuda",)).compile()
