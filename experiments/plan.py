r"""Finds the cuts, the executor and the batch size whose step fits a memory budget, without training.

.. code-block:: shell

    python -m experiments.plan --model='resnet(depth=110)' --rule=dgl --batch_size=1024 --memory=6GiB
    python -m experiments.plan --config=experiments/configs/auglocal_digits.py --memory=20MiB
    python -m experiments.plan --model='resnet(depth=110)' --rule=dgl --batch_size=4096 --device=h100

The fewest blocks that are found to fit are chosen, as few cuts cost least in accuracy and computation. See
``docs/memory.md``. Without a config, images are noise, and ``--examples`` says how many of them are on the device;
or tokens are, for a language model.
"""

import shlex
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.app.calls import as_call, called, parse_call
from experiments.app.errors import UserError, one_of
from experiments.app.program import config_flag, run
from experiments.cost.compiled import Measured, UnitCost, measure, unit_costs
from experiments.cost.search import DoesNotFitError, cutter_of, in_one_block, search, with_remat
from experiments.drawing.tables import aligned
from experiments.recipe.build import build, changed
from experiments.recipe.devices import memory_of
from experiments.recipe.fields import parse_memory
from experiments.recipe.noise import noise, windows_of
from experiments.recipe.registry import DTYPES, EXECUTORS
from jaxlocal.data import Input
from jaxlocal.executors import MIB

_CONFIG = config_flag("Where everything comes from that no flag gives.", runs=False)
_MODEL = flags.DEFINE_string("model", None, "A model, as a call: 'resnet(depth=110)'.")
_RULE = flags.DEFINE_string("rule", None, "A rule, as a call: 'auglocal(depth=2)'.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Examples in a step.", lower_bound=1)
_MEMORY = flags.DEFINE_string("memory", None, "The budget on the device: 6GiB, 512MiB. Default: what --device has.")
_DEVICE = flags.DEFINE_string("device", "", "A device to compile for instead of this one, as h100 or v5e.")
_EXECUTORS = flags.DEFINE_list("executor", list(EXECUTORS), "Those that may be used, cheapest first.")
_DTYPE = flags.DEFINE_enum("dtype", None, list(DTYPES), "Of the computation.")
_IMAGE = flags.DEFINE_integer("image", 32, "Without a config: side of the images.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 10, "Without a config: number of classes.", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 1024, "Without a config: training examples.", lower_bound=1)


def config_and_data() -> tuple[ConfigDict, Input]:
    """What the flags say.

    Raises:
      UserError: if they do not say enough, or anything that they say is wrong.
    """
    given = flags.FLAGS["config"].value is not None
    if given and _MODEL.value:
        raise UserError("--model beside --config: change the config's model by --config.model.depth=110 and the like")
    if not given and not (_MODEL.value and _RULE.value):
        raise UserError("--model and --rule are needed, as --model='resnet(depth=32)' --rule=dgl; or --config")
    model, n, side = _MODEL.value and parse_call(_MODEL.value, "model"), _EXAMPLES.value, _IMAGE.value
    config = noise(model, side, _CLASSES.value, max(n, _BATCH_SIZE.value or 1)) if model else _CONFIG()
    if _RULE.value:
        config.rule = ConfigDict(parse_call(_RULE.value, "rule", config.rule))
    config.batch_size = _BATCH_SIZE.value or config.batch_size
    config.dtype = _DTYPE.value or config.dtype
    config.device = _DEVICE.value or config.device
    if not given:
        config.duration = f"{config.batch_size} steps"  # as many batches as one may be split into
    return config, build(in_one_block(config)).dataset


def budget_of(config: ConfigDict) -> int:
    """Bytes that a step may take: what the flag says, else what the device has, described or here.

    Raises:
      UserError: if neither says any.
    """
    if _MEMORY.value:
        return parse_memory(_MEMORY.value, "--memory")
    if budget := memory_of(config.device):
        return budget
    raise UserError("--memory is needed: the budget, as --memory=6GiB; or --device, as h100, which has a memory")


def without_rule(config: ConfigDict, dataset: Input) -> dict[str, Measured]:
    """What takes the same batch without local learning; backprop last."""
    return {rule: measure(build(in_one_block(config, rule), dataset)) for rule in ("remat(backprop)", "backprop")}


def named(plan: Measured) -> str:
    """What a plan is: rule, number of blocks, executor."""
    config = plan.experiment.config
    return f"{called(config.rule)}, {plan.blocks}, {config.executor}"


def table_of_units(units: Sequence[UnitCost]) -> str:
    """Every unit as a block of its own."""
    rows = [("unit", "kind", "output", "temporaries MiB", "MFLOP / example", "in its head", "parameters in its head")]
    for i, unit in enumerate(units):
        flops = (f"{unit.unit / 1e6:,.1f}", f"{unit.head / 1e6:,.1f}")
        numbers = (f"{unit.temporaries / MIB:,.1f}", *flops, f"{unit.parameters:,}")
        rows.append((str(i), unit.kind, "x".join(map(str, unit.output)), *numbers))
    return aligned(rows)


def table_of_steps(steps: dict[str, Measured]) -> str:
    """Memory and computation of a step; the last one is backprop's."""
    rows: list[Sequence[str]] = [
        ("step", "peak MiB", "data", "state, batch", "largest program", "MFLOP / example", "÷ backprop's")
    ]
    *_, base = steps.values()
    for name, step in steps.items():
        resident = step.cost.resident
        parts = (step.cost.total, step.data, resident - step.data, step.cost.total - resident)
        flops = (f"{step.cost.flops / 1e6:,.1f}", f"{step.cost.flops / base.cost.flops:.2f}")
        rows.append((name, *(f"{part / MIB:,.1f}" for part in parts), *flops))
    return aligned(rows)


def verdict(step: Measured, others: dict[str, Measured], budget: int) -> str:
    """What fits without cuts, if anything does."""
    fitting = [name for name, other in others.items() if other.cost.total <= budget]
    cheaper = [name for name in fitting if others[name].cost.flops <= step.cost.flops]
    batch = f"at batch size {step.experiment.config.batch_size}"
    if cheaper:
        return f"nothing is gained by cuts {batch}: {' and '.join(cheaper)} already fits, without more computation"
    if fitting:
        return f"{' and '.join(fitting)} fits as well {batch}, with more computation"
    return f"neither backprop nor remat(backprop) fits {batch}"


def command(plan: Measured) -> str:
    """Trains with the plan; without a config, measures its memory and speed."""
    config = plan.experiment.config
    flag: Any = flags.FLAGS["config"]
    if flag.value is None:
        program = "speed"
        options = {"models": _MODEL.value, "rules": _RULE.value, "cuts": config.cuts, "executors": config.executor}
        options |= {"batch_sizes": config.batch_size, "dtypes": config.dtype}
        options |= {} if windows_of(config.model) else {"image": _IMAGE.value, "classes": _CLASSES.value}
    else:
        program = "compare" if _RULE.value else "train"
        found = {field: config[field] for field in ("cuts", "executor", "batch_size", "accumulate", "dtype")}
        given = flag.override_values | found
        options = {f"config.{field}": as_call(x) if isinstance(x, ConfigDict) else x for field, x in given.items()}
        options = {"config": flag.config_filename, **options, **({"rules": _RULE.value} if _RULE.value else {})}
    words = (f"--{name}={value}" for name, value in (options | {"workdir": "DIR"}).items())
    return f"python -m experiments.{program} {' '.join(map(shlex.quote, words))}"


def smaller_batch(config: ConfigDict, dataset: Input, budget: int, error: DoesNotFitError) -> Measured:
    """The plan of the largest batch size that fits, halving it; as many more batches make an update.

    Raises:
      UserError: if none does.
    """
    while True:
        least = error.least
        tried = least.experiment.config
        fixed = least.data + (0 if tried.executor == "streamed+offload" else least.state)
        goal = config.batch_size * (budget - fixed) / max(1, least.cost.total - fixed)  # the rest grows with the batch
        while config.batch_size > max(1, goal) or config.batch_size == tried.batch_size:
            if config.batch_size % 2:
                raise UserError(f"{error}; no half of it fits either") from error
            config.batch_size, config.accumulate = config.batch_size // 2, config.accumulate * 2
        try:
            return search(config, dataset, budget, _EXECUTORS.value, _say)
        except DoesNotFitError as again:
            error = again


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Prints the units, the plan, what others take, and the command."""
    executors = [one_of("executor", name, tuple(EXECUTORS)) for name in _EXECUTORS.value or [""]]
    config, dataset = config_and_data()
    budget = budget_of(config)
    _say(f"{table_of_units(unit_costs(*cutter_of(config, dataset)))}\n")
    try:
        plan = search(config, dataset, budget, executors, _say)
    except DoesNotFitError as error:
        _say(f"{error}\n{verdict(error.least, without_rule(config, dataset), budget)}")
        plan = smaller_batch(changed(config), dataset, budget, error)
    config = plan.experiment.config
    others = without_rule(config, dataset)
    steps = {named(step): step for step in (plan, *with_remat(plan, budget, executors))}
    _say(
        f"\n{called(config.rule)} fits {budget / MIB:,.1f} MiB at batch size {config.batch_size}, accumulate "
        f"{config.accumulate}, in {plan.blocks} by {config.executor}: --config.cuts={config.cuts}, rule keeps "
        f"{list(plan.cuts)}\n\n{table_of_steps(steps | others)}\n\n"
        f"{verdict(plan, others, budget)}\n\n{command(plan)}"
    )


if __name__ == "__main__":
    run(main)
