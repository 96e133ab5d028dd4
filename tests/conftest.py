"""Shapes in annotations are checked at run time, mixed dtypes are an error, and compiling is quick.

Programs that the tests start are left as a user has them.
"""

import gc
import itertools
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before jaxlocal or jax are imported: tests must not read or fill the user's cache. All workers of
# one run, and the programs that they start, share one.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAXLOCAL_CACHE"] = tempfile.mkdtemp(prefix="jaxlocal-tests-")

with pytest.MonkeyPatch.context() as environment, install_import_hook("jaxlocal", "beartype.beartype"):
    if version("jaxlib").startswith("0.10."):  # compiles small programs in half the time; later ones know no such flag
        environment.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false", prepend=" ")
    import jax

    import jaxlocal  # noqa: F401

    jax.config.update("jax_num_cpu_devices", 4)
    jax.devices()  # reads the flags, which programs that the tests start are not to have

jax.config.update("jax_compilation_cache_dir", os.path.join(os.environ["JAXLOCAL_CACHE"], "tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)  # small programs: most of the time is compilation

MOST_MAPS = (
    30_000  # of the 65,530 that Linux gives a process by default; beyond these a compiler ends in a segmentation fault
)


def pytest_unconfigure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAXLOCAL_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _programs_leave_room():
    """Every compiled program keeps some mappings of memory, and a worker compiles thousands."""
    yield
    maps = Path("/proc/self/maps")
    if next(_TESTS) % 8 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


_TESTS = itertools.count()
