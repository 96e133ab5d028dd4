"""Compiler options under which an ordered step really takes the memory of one block."""

import jax


def compiler_options() -> dict[str, str]:
    """Options for ``jax.jit`` on the default backend.

    On CPU the default schedule is not the one of least memory. And before jax 0.11 a
    pass removes every optimization barrier, and with it the order of blocks and units.
    Nothing is set for other backends.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    if jax.__version_info__ < (0, 11):
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    return options
