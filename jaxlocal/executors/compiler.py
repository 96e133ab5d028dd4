"""Compiler options under which an ordered step takes the memory of one block, and the time that it has to."""

import contextlib
import math
from collections.abc import Iterator

import jax

# Of jax 0.12's CPU backend: products and sums by YNNPACK, convolutions by oneDNN where it is there, which takes half of
# Eigen's time; YNNPACK takes longer for them.
_LIBRARIES = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_experimental_onednn_custom_call": "True",
}


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Options for ``jax.jit`` on a platform, the default backend unless one is given.

    On CPU the default schedule is not the one of least memory. And before jax 0.11 a
    pass removes every optimization barrier, and with it the order of blocks and units.
    From jax 0.12 on the library that computes convolutions can be chosen; programs with oneDNN's are to be
    compiled within :func:`uncached`.
    Nothing is set for other platforms: their schedules are those of least memory, and keep barriers.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    if jax.__version_info__ < (0, 11):
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    if jax.__version_info__ >= (0, 12):
        options |= _LIBRARIES
    return options


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Programs that are compiled in here are not written to JAX's persistent cache if they may call oneDNN.

    Those cannot be written: jax 0.12 fails at it, of which it warns, or ends in a segmentation fault.
    """
    if not _LIBRARIES.items() <= compiler_options().items():
        yield
        return
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, math.inf)
    try:
        yield
    finally:
        jax.config.update(option, before)
