"""Compiler options under which an ordered step takes the memory of one block, and the time that it has to."""

import jax

# By oneDNN, a convolution of 16 channels takes 0.4 of the time, as it does in PyTorch. Products and sums stay with
# YNNPACK, which would take convolutions as well, and be slower.
_LIBRARIES = {
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}


def compiler_options() -> dict[str, str | bool]:
    """Options for ``jax.jit`` on the default backend.

    On CPU the default schedule is not the one of least memory. And before jax 0.11 a
    pass removes every optimization barrier, and with it the order of blocks and units.
    From jax 0.12 on convolutions are computed by oneDNN, where the CPU has it.
    Nothing is set for other backends.
    """
    if jax.default_backend() != "cpu":
        return {}
    options: dict[str, str | bool] = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    if jax.__version_info__ < (0, 11):
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    return options if jax.__version_info__ < (0, 12) else options | _LIBRARIES
