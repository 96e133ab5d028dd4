r"""What more devices bring: data parallelism, blocks in a pipeline, and backprop in the same places.

.. code-block:: shell

    python -m experiments.scaling --model='resnet(depth=32)' --rule=dgl --devices=1,2 --workdir=/tmp/scaling

Images, or a language model's tokens, are random. On a CPU each device is a process with a core of its own, unless
``JAX_NUM_CPU_DEVICES`` makes several of one process, which share all cores. Contenders take turns; among them are the
same stages on one device, so that what more devices bring is told from what smaller programs bring. ``scaling.json``, a
table and a picture go to the workdir, with a simulation of more devices from the times of single blocks and units.
"""

from typing import Any

import jax
from absl import flags

from experiments.app.errors import UserError, user_input
from experiments.app.files import directory
from experiments.app.program import required_path, run
from experiments.trials.contenders import Spec, built
from experiments.trials.contest import in_processes, measure, report

flags.DEFINE_string("model", "resnet(depth=32)", "Model, as a call.")
flags.DEFINE_string("rule", "dgl", "Rule, as a call.")
flags.DEFINE_string("cuts", "all", "Cuts of the rule.")
_DEVICES = flags.DEFINE_string("devices", "1,2", "Numbers of devices.")
_MICROBATCHES = flags.DEFINE_string("microbatches", "4,8", "In how many parts backprop's pipeline takes a batch.")
_BATCH = flags.DEFINE_integer("batch_size", 128, "Examples of an update.", lower_bound=1)
flags.DEFINE_integer("image", 32, "Side of the images.", lower_bound=1)
flags.DEFINE_integer("classes", 10, "Number of classes.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Turns of each contender.", lower_bound=1)
flags.DEFINE_integer("steps", 8, "Updates in a turn.", lower_bound=1)
_SIMULATE = flags.DEFINE_string("simulate", "8,16,32,64,128,256,512,1024", "Numbers of devices to simulate.")
_BANDWIDTH = flags.DEFINE_float("bandwidth", 0, "GB/s between simulated devices; 0 for what is here.", lower_bound=0)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where measurements, table and picture go.")


def main() -> None:
    """Measures, then reports."""
    with user_input("--devices, --microbatches, --simulate"):
        devices, microbatches, simulate = (
            tuple(sorted({int(n) for n in text.split(",") if n}))
            for text in (_DEVICES.value, _MICROBATCHES.value, _SIMULATE.value)
        )
        if min((*devices, *microbatches, *simulate)) < 1:
            raise ValueError("give whole numbers from 1 up")
    for n in {*devices, *microbatches}:
        if _BATCH.value % n:
            raise UserError(f"--batch_size={_BATCH.value} does not split into {n} equal parts")
    given: dict[str, Any] = {field: flags.FLAGS[field].value for field in Spec._fields}
    spec = Spec(**given | {"devices": tuple(sorted({1, *devices})), "microbatches": microbatches})
    built(spec, spec.rule)  # says what is wrong with them
    workdir = directory(required_path(_WORKDIR, "a directory for the measurements"))
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        found = in_processes(spec, max(spec.devices))
    elif max(spec.devices) > jax.device_count():
        raise UserError(f"--devices={max(spec.devices)}: this machine has {jax.device_count()}")
    else:
        found = measure(spec)
    report(found, simulate, _BANDWIDTH.value * 1e9, workdir)


if __name__ == "__main__":
    run(main)
