r"""Memory of the compiled step: models x rules x cuts x batches x executors x dtypes, relative to backprop.

.. code-block:: shell

    python -m experiments.memory --models='resnet(depth=32),resnet(depth=110)' \
        --rules='remat(backprop),remat(backprop,every=3),dgl,auglocal(depth=2)' --cuts=all,even:4,balanced:4 \
        --batch_sizes=128,1024 --executors=fused,streamed --accumulate=1,4 --workdir=/tmp/memory

See ``docs/memory.md``. Each case is one line of ``memory.jsonl`` as soon as it is done; interrupted, the same command
goes on. ``table.md`` and ``memory.png`` (memory against computation) are written at the end. ``--measure_peak`` runs
steps, each case in a process of its own, for the peak that the device reports (on a CPU: the process's).

.. code-block:: shell

    python -m experiments.memory --models='resnet(depth=32)' --rules='remat(backprop),dgl' --batch_sizes=1024 \
        --executors=fused --device=here,h100,v5e --largest --workdir=/tmp/devices

compiles for devices that are not here, too, and tells what programs move and the least time that they take; see
``docs/accelerators.md``. Of several devices there is one more picture, ``devices.png``. ``--largest`` looks for the
largest batch of each case that the device's memory holds, by compiling some more.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence

import jax
from absl import flags
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from experiments.app.errors import UserError
from experiments.app.program import run
from experiments.cost.largest import largest
from experiments.cost.timed import measure_alone
from experiments.drawing.trades import by_device
from experiments.recipe.devices import memory_of
from experiments.recipe.experiment import Experiment
from experiments.trials.cases import Case, built, define_flags, parse_cases
from experiments.trials.frontier import (
    MEMORY,
    Column,
    Height,
    Log,
    Numbers,
    OutOfMemoryError,
    analyse,
    attempt,
    memory_suffices,
    report,
    shown,
)
from jaxlocal.executors import ACCELERATORS, MIB

define_flags(flags.FLAGS)
_DEVICE = flags.DEFINE_list(
    "device",
    ["here"],
    f"Devices to compile for: here, {', '.join(ACCELERATORS)}; several of a kind: h100:8, v5e:4x4.",
)
_CACHED = flags.DEFINE_bool("cached", False, "Time compilation from a full cache, too.")
_LARGEST = flags.DEFINE_bool("largest", False, "Look for the largest batch that fits the device, within 2%.")
_MEASURE_PEAK = flags.DEFINE_bool("measure_peak", False, "Run steps of each case for the peak that is reported.")

_COLUMNS: tuple[Column, ...] = (
    *MEMORY,
    ("largest batch", lambda x, _: f"{x['largest']:,}" if x.get("largest") is not None else None),
    ("measured peak MiB", lambda x, _: shown(x.get("peak"), 1 / MIB)),
    ("programs", lambda x, _: str(x["programs"])),
    ("lower s", lambda x, _: shown(x["lower_seconds"])),
    ("compile s", lambda x, _: shown(x["compile_seconds"])),
    ("cached s", lambda x, _: shown(x.get("cached_seconds"))),
)
_HEIGHT: Height = ("FLOPs ÷ backprop's", lambda x, base: x["flops"] / base["flops"])


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
    """In here, compiled programs go to and come from a persistent cache that is empty at first."""
    with tempfile.TemporaryDirectory() as directory:
        options = {
            "jax_compilation_cache_dir": directory,
            "jax_persistent_cache_min_compile_time_secs": 0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
        before = {name: getattr(jax.config, name) for name in options}
        try:
            _use_cache(options)
            yield
        finally:
            _use_cache(before)


def _use_cache(options: dict[str, object]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    reset_cache()  # it is opened once, wherever it was then
    jax.clear_caches()


def measure(case: Case) -> Numbers:
    """Memory, computation and compilation of a case, and what the flags ask for beside."""
    experiment = built(case)
    with empty_cache():
        numbers = analyse(experiment)
        if _CACHED.value:
            jax.clear_caches()
            numbers["cached_seconds"] = analyse(experiment)["compile_seconds"]
    if _LARGEST.value:
        numbers["largest"] = largest_batch(case, experiment, numbers)
    if _MEASURE_PEAK.value:
        numbers["peak"] = attempt(case, lambda _: {"peak": measure_alone(experiment).peak}).get("peak")
    return numbers


def largest_batch(case: Case, experiment: Experiment, numbers: Numbers) -> int | None:
    """The examples of the largest batch that the case's devices hold, to within 2%; None where that is not asked."""
    budget, n = memory_of(case.device), len(experiment.placement.devices)
    if budget is None or case.accumulate > 1:
        return None

    def total(of_a_device: int) -> float:
        print(f"  batch {n * of_a_device}", flush=True)
        try:
            with empty_cache(), memory_suffices():
                return analyse(built(case._replace(batch_size=n * of_a_device)))["total"]
        except (OutOfMemoryError, OverflowError):  # or more values than 32 bits count
            return math.inf

    return n * largest(total, budget, {case.batch_size // n: numbers["total"]})


def ratios(log: Log, cases: Sequence[Case], axis: str) -> dict[str, dict[str, dict[str, float]]]:
    """Memory relative to backprop's on the same device: by group, by case, by device."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case in cases:
        x, base = log.known[case], log.known[case.baseline]
        if "skipped" not in x and "skipped" not in base and case != case.baseline:
            rows = found.setdefault(case._replace(device="").group, {})
            rows.setdefault(case.label(f" (K={x['blocks']})"), {})[case.device or "here"] = x[axis] / base[axis]
    return found


def main() -> None:
    """Measures what is not known yet, then writes the table and the picture."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # peaks are measured by other processes
    devices = ["" if name == "here" else name for name in _DEVICE.value]
    cases, log = parse_cases(flags.FLAGS, devices), Log(flags.FLAGS.workdir, "memory")
    if _MEASURE_PEAK.value and any(devices):
        raise UserError(f"--measure_peak with --device={','.join(_DEVICE.value)}: no step runs on what is not here")
    if _LARGEST.value and not any(map(memory_of, devices)):
        raise UserError("--largest: how much memory the device here has is not known; give one, as --device=h100")
    flags_of = {"cached_seconds": _CACHED, "peak": _MEASURE_PEAK, "largest": _LARGEST}
    asked = {name for name, flag in flags_of.items() if flag.value}
    for i, case in enumerate(cases):
        known = log.known.get(case)
        if known is None or ("skipped" not in known and not asked <= known.keys()):
            print(f"[{i + 1}/{len(cases)}] {case.group}: {case.label()}", flush=True)
            log.add(case, attempt(case, measure))
    report(log, cases, _COLUMNS, flags.FLAGS.axis, _HEIGHT, "memory.png")
    if len(devices) > 1:
        axis, path = flags.FLAGS.axis, log.workdir / "devices.png"
        if found := ratios(log, cases, axis):
            by_device(found, f"{axis} memory of a step ÷ backprop's on the same device", path)
            print(f"picture: {path}")


if __name__ == "__main__":
    run(main)
