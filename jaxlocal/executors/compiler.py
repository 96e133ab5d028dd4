"""Compiler options under which an ordered step takes the memory of one block, and the time that it has to."""

import jax

# Of jax 0.12's CPU backend: products and sums by YNNPACK, convolutions by oneDNN where it is there, which takes half of
# Eigen's time; YNNPACK takes longer for them.
_LIBRARIES = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_experimental_onednn_custom_call": "True",
}


def compiler_options() -> dict[str, str]:
    """Options for ``jax.jit`` on the default backend.

    On CPU the default schedule is not the one of least memory. And before jax 0.11 a
    pass removes every optimization barrier, and with it the order of blocks and units.
    From jax 0.12 on the library that computes convolutions can be chosen; a program with oneDNN's
    cannot be written to the persistent cache, of which jax warns.
    Nothing is set for other backends.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    if jax.__version_info__ < (0, 11):
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    if jax.__version_info__ >= (0, 12):
        options |= _LIBRARIES
    return options
