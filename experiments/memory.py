r"""Memory of the compiled step: models x rules x cuts x batches x executors x dtypes, relative to backprop.

.. code-block:: shell

    python -m experiments.memory --models='resnet(depth=32),resnet(depth=110)' \
        --rules='remat(backprop),remat(backprop,every=3),dgl,auglocal(depth=2)' --cuts=all,even:4,balanced:4 \
        --batch_sizes=128,1024 --executors=fused,streamed --accumulate=1,4 --workdir=/tmp/memory

With ``--device=h100`` (or ``v5e``, ``h100:8``, ...) programs are compiled for a device that is not here, and what they
move and the least time that they take are told beside; see ``docs/accelerators.md``. See ``docs/memory.md``. Each
case is one line of ``memory.jsonl`` as soon as it is done; interrupted, the same command goes on. ``table.md`` and
``memory.png`` (memory against computation) are written at the end. ``--measure_peak`` runs steps, each case in a
process of its own, for the peak that the device reports (on a CPU: the process's).
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator

import jax
from absl import flags
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from experiments.app.errors import UserError
from experiments.app.program import run
from experiments.cost.timed import measure_alone
from experiments.trials.cases import Case, built, define_flags, parse_cases
from experiments.trials.frontier import MEMORY, Column, Height, Log, Numbers, analyse, attempt, report, shown
from jaxlocal.executors import ACCELERATORS, MIB

define_flags(flags.FLAGS)
_DEVICE = flags.DEFINE_string(
    "device", "", f"A device to compile for instead of this one: {', '.join(ACCELERATORS)}; several: h100:8, v5e:4x4."
)
_CACHED = flags.DEFINE_bool("cached", False, "Time compilation from a full cache, too.")
_MEASURE_PEAK = flags.DEFINE_bool("measure_peak", False, "Run steps of each case for the peak that is reported.")

_COLUMNS: tuple[Column, ...] = (
    *MEMORY,
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
    if _MEASURE_PEAK.value:
        numbers["peak"] = attempt(case, lambda _: {"peak": measure_alone(experiment).peak}).get("peak")
    return numbers


def main() -> None:
    """Measures what is not known yet, then writes the table and the picture."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # peaks are measured by other processes
    cases, log = parse_cases(flags.FLAGS, _DEVICE.value), Log(flags.FLAGS.workdir, "memory")
    if _DEVICE.value and _MEASURE_PEAK.value:
        raise UserError(f"--measure_peak with --device={_DEVICE.value}: it is not here, so no step runs on it")
    asked = {name for name, flag in (("cached_seconds", _CACHED), ("peak", _MEASURE_PEAK)) if flag.value}
    for i, case in enumerate(cases):
        known = log.known.get(case)
        if known is None or ("skipped" not in known and not asked <= known.keys()):
            print(f"[{i + 1}/{len(cases)}] {case.group}: {case.label()}", flush=True)
            log.add(case, attempt(case, measure))
    report(log, cases, _COLUMNS, flags.FLAGS.axis, _HEIGHT, "memory.png")


if __name__ == "__main__":
    run(main)
