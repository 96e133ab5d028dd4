"""Software and device, for the record."""

import functools
import os
import platform
import zlib
from importlib import metadata
from pathlib import Path

import jax

import jaxlocal


def environment() -> dict[str, str]:
    """Versions, a checksum of the library's files, and device, for the record."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "jaxlocal": jaxlocal.__version__,
        **{name: metadata.version(name) for name in packages},
        "code": _checksum_of_library(),
        "device": device.device_kind,
        "platform": device.platform,
        "host_cpus": str(os.cpu_count()),
    }


@functools.cache
def _checksum_of_library() -> str:
    checksum = 0
    for path in sorted(Path(jaxlocal.__file__).parent.rglob("*.py")):
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return f"{checksum:08x}"
