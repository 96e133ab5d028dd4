"""Compiler options under which an ordered step takes the memory of one block, and the time that it has to."""

import contextlib
import math
import threading

import jax

# Of jax 0.12's CPU backend: products and sums by YNNPACK, convolutions by oneDNN where it is there, which takes half of
# Eigen's time; YNNPACK takes longer for them.
_LIBRARIES = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_experimental_onednn_custom_call": "True",
}


def compiler_options(platform: str | None = None, *, described: bool = False) -> dict[str, str]:
    """Options for ``jax.jit`` on a platform, the default backend unless one is given.

    Args:
      platform: of the device.
      described: whether it is not here.

    On CPU the default schedule is not the one of least memory. And before jax 0.11 a
    pass removes every optimization barrier, and with it the order of blocks and units.
    From jax 0.12 on the library that computes convolutions can be chosen; programs with oneDNN's are to be
    compiled within :func:`uncached`.
    Nothing is set for other platforms: their schedules are those of least memory, and keep barriers. But nothing is
    tuned for a GPU that is not here, and before jax 0.11 its compiler fails at some products that it would take
    Triton's tiles for, untuned: these are cuBLAS's.
    """
    platform = platform or jax.default_backend()
    if described and platform not in ("cpu", "tpu") and jax.__version_info__ < (0, 11):
        return {"xla_gpu_enable_triton_gemm": "False"}
    if platform != "cpu":
        return {}
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    if jax.__version_info__ < (0, 11):
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    if jax.__version_info__ >= (0, 12):
        options |= _LIBRARIES
    return options


class _Uncached(contextlib.AbstractContextManager[None]):
    """Of all threads: the first to come sets JAX's option, the last to go sets it back."""

    def __init__(self) -> None:
        self._lock, self._within, self._before = threading.Lock(), 0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._before = getattr(jax.config, _CACHED_FROM)
                jax.config.update(_CACHED_FROM, math.inf)
            self._within += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                jax.config.update(_CACHED_FROM, self._before)


_CACHED_FROM = "jax_persistent_cache_min_compile_time_secs"
_UNCACHED, _AS_EVER = _Uncached(), contextlib.nullcontext()


def uncached() -> contextlib.AbstractContextManager[None]:
    """Programs that are compiled within are not written to JAX's persistent cache if they may call oneDNN.

    Those cannot be written: jax 0.12 fails at it, of which it warns.
    """
    return _UNCACHED if jax.__version_info__ >= (0, 12) and jax.default_backend() == "cpu" else _AS_EVER
