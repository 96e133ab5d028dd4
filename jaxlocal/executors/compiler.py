"""Compiler options under which an ordered step takes the memory of one block, and the time that it has to."""

import jax

# Of jax 0.12's CPU backend: products and sums by YNNPACK, but not convolutions, which take longer there. By oneDNN
# (xla_cpu_experimental_onednn_custom_call) those of few channels take half the time, but such a program cannot be
# written to the persistent cache.
_LIBRARIES = "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"


def compiler_options() -> dict[str, str]:
    """Options for ``jax.jit`` on the default backend.

    On CPU the default schedule is not the one of least memory. And before jax 0.11 a
    pass removes every optimization barrier, and with it the order of blocks and units.
    From jax 0.12 on one of its libraries computes convolutions, slowly, unless told not to.
    Nothing is set for other backends.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    if jax.__version_info__ < (0, 11):
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    if jax.__version_info__ >= (0, 12):
        options["xla_cpu_experimental_ynn_fusion_type"] = _LIBRARIES
    return options
