"""Devices that are not there, described to their own compilers.

XLA's compilers of TPUs and NVIDIA GPUs run on any machine. Programs over devices of :func:`described` are compiled as
they would be there, and their memory can be read; they cannot run. TPUs need libtpu, GPUs JAX's plugin for CUDA.
"""

import functools
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

GB, GIB, TERA = 10**9, 2**30, 10**12


class Accelerator(NamedTuple):
    """A device, and what it can do at most.

    Attributes:
      name: of the maker.
      memory: bytes that programs may use.
      bandwidth: of that memory, bytes a second.
      bfloat16: floating-point operations a second of products in bfloat16; dense.
      float32: likewise.
      gpu: what the compiler asks of a GPU: compute capability, cores, floating-point units and threads of a core,
        shared memory of a core and of a block at most, bytes of level-2 cache, GHz. None for a TPU.
    """

    name: str
    memory: int
    bandwidth: float
    bfloat16: float
    float32: float
    gpu: tuple[tuple[int, int], int, int, int, int, int, int, float] | None = None


# Memory, bandwidth and what stands under gpu: XLA's target configurations (openxla/xla, target_config/specs); rates:
# NVIDIA's data sheets, without sparsity, in float32 those of TF32, which XLA takes for products and convolutions from
# compute capability 8 on. TPUs: Google Cloud's pages of each version, memory as libtpu's compiler limits it.
ACCELERATORS: dict[str, Accelerator] = {
    "v100": Accelerator(
        "NVIDIA V100 SXM2 16 GB", 16935682048, 898.0 * GB, 15.7 * TERA, 15.7 * TERA,
        ((7, 0), 80, 64, 2048, 98304, 98304, 6291456, 1.53),
    ),
    "a100_40": Accelerator(
        "NVIDIA A100 SXM4 40 GB", 42331013120, 1555.2 * GB, 312 * TERA, 156 * TERA,
        ((8, 0), 108, 64, 2048, 167936, 166912, 41943040, 1.41),
    ),
    "a100": Accelerator(
        "NVIDIA A100 SXM4 80 GB", 85100068864, 2039.0 * GB, 312 * TERA, 156 * TERA,
        ((8, 0), 108, 64, 2048, 167936, 166912, 41943040, 1.41),
    ),
    "a6000": Accelerator(
        "NVIDIA RTX A6000", 51041271808, 768.1 * GB, 154.8 * TERA, 77.4 * TERA,
        ((8, 6), 84, 128, 1536, 102400, 101376, 6291456, 1.8),
    ),
    "h100": Accelerator(
        "NVIDIA H100 SXM 80 GB", 84942979072, 3352.3 * GB, 989.4 * TERA, 494.7 * TERA,
        ((9, 0), 132, 128, 2048, 233472, 232448, 52428800, 1.98),
    ),
    "h200": Accelerator(
        "NVIDIA H200 SXM 141 GB", 151397597184, 4800.0 * GB, 989.4 * TERA, 494.7 * TERA,
        ((9, 0), 132, 128, 2048, 233472, 232448, 52428800, 1.98),
    ),
    "b200": Accelerator(
        "NVIDIA B200", 191514411008, 7672.3 * GB, 2250 * TERA, 1125 * TERA,
        ((10, 0), 148, 128, 2048, 233472, 232448, 132644864, 1.965),
    ),
    "v4": Accelerator("TPU v4, one of a chip's two cores", 16 * GIB, 614 * GB, 137.5 * TERA, 137.5 * TERA),
    "v5e": Accelerator("TPU v5e", 16 * GIB, 819 * GB, 197 * TERA, 197 * TERA),
    "v5p": Accelerator("TPU v5p", 95 * GIB, 2765 * GB, 459 * TERA, 459 * TERA),
    "v6e": Accelerator("TPU v6e", 32 * GIB, 1640 * GB, 918 * TERA, 918 * TERA),
}  # fmt: skip


def accelerator(text: str) -> Accelerator:
    """The row of a device that is written as for :func:`described`."""
    return _parsed(text)[1]


def described(text: str) -> tuple[jax.Device, ...]:
    """Devices that programs can be compiled for, and not run on.

    Args:
      text: a name of :data:`ACCELERATORS`, and behind a colon how many: ``h100``, ``h100:8`` (of one machine),
        ``v5e:4x4``, ``v5p:8x8x8``.

    Raises:
      ValueError: if it is none of these, the grid is none that there is, or the compiler is not installed.
    """
    name, found, grid = _parsed(text)
    if found.gpu or grid != "1":
        return _topology(name, found, grid)
    return _topology(name, found, "2x2x1" if name in _CUBES else "2x2")[:1]  # the smallest that all of libtpu know


def is_described(device: jax.Device) -> bool:
    """Whether a device is one of :func:`described`."""
    return device in _known


_CUBES = ("v4", "v5p")  # whose grids have three dimensions
_known: set[jax.Device] = set()
# Of libtpu: it is not to look for a cloud around this machine, nor to say that there is none, nor to be alone.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def _parsed(text: str) -> tuple[str, Accelerator, str]:
    name, colon, grid = text.partition(":")
    if name not in ACCELERATORS:
        raise ValueError(f"device {text!r}: choose {', '.join(ACCELERATORS)}, or several, as h100:8, v5e:4x4")
    found, three = ACCELERATORS[name], name in _CUBES
    pattern, example = (r"\d+", "8") if found.gpu else (r"\d+x\d+x\d+", "2x2x1") if three else (r"\d+x\d+", "2x2")
    grid = grid if colon else "1"
    if colon and not re.fullmatch(pattern, grid):
        raise ValueError(f"device {text!r}: write several of these as {name}:{example}")
    return name, found, grid


@functools.cache
def _topology(name: str, found: Accelerator, grid: str) -> tuple[jax.Device, ...]:
    platform = "cuda" if found.gpu else "tpu"
    options = {"target_config": _target_config(found), "topology": f"1x1x{grid}"} if found.gpu else {}
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        topology = topologies.get_topology_desc(name if found.gpu else f"{name}:{grid}", platform, **options)
    except (NotImplementedError, RuntimeError) as error:
        missing = isinstance(error, NotImplementedError) or "not installed" in str(error)
        why = f"its compiler is missing: pip install 'jaxlocal[{platform}]'" if missing else str(error).splitlines()[0]
        raise ValueError(f"device {name}:{grid}: {why}") from error
    _known.update(topology.devices)
    return tuple(topology.devices)


def _target_config(found: Accelerator) -> str:
    """A GPU as XLA's ``GpuTargetConfigProto`` has it, in its text form; what they all have alike is here."""
    assert found.gpu is not None
    (major, minor), cores, units, threads, shared, shared_at_most, cache, clock = found.gpu
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": shared,
        "threads_per_core_limit": threads,
        "core_count": cores,
        "fpus_per_core": units,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": round(found.bandwidth),
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": found.memory,
        "shared_memory_per_block_optin": shared_at_most,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    fields = " ".join(f"{field}: {value}" for field, value in info.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 9 } '
        f'device_description_str: "{found.name}"'
    )
