"""From a config to everything a run needs. Whatever is wrong with the config is said here."""

import functools
import os
import platform
import re
import zlib
from collections import deque
from collections.abc import Generator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import jaxlocal
from experiments import processes
from experiments.cli import UserError, one_of, user_input
from experiments.configs import common
from experiments.devices import placements, starts
from experiments.optimizers import OPTIMIZERS, cosine_with_warmup
from experiments.record import by_seed
from experiments.registry import MODELS, RULES, fits, innermost, make, make_rule
from jaxlocal import data, losses
from jaxlocal.block import Block, BlockState, make_blocks
from jaxlocal.executors import BlockMetrics, Executor, Placement, TrainState, fused, pipelined, streamed
from jaxlocal.feed import Feed
from jaxlocal.network import Network, activations, blocks_of, cut_balanced, cut_evenly, cut_everywhere
from jaxlocal.rule import LocalRule
from jaxlocal.variables import RUNNING, Variables, pick, size

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ON_DIVERGENCE = ("stop", "skip", "rollback")
EXECUTORS: dict[str, Any] = {
    "fused": fused,
    "streamed": streamed,
    "streamed+offload": functools.partial(streamed, offload=True),
    "pipelined": pipelined,
}


class Experiment(NamedTuple):
    """A config, built.

    Attributes:
      dataset: where the data of steps come from.
      network: with the cuts that the rule left.
      blocks: units and objective of each block.
      feed: of the rule.
      optimizer: of every block.
      schedule: step -> learning rate.
      placement: the devices that data go to: all, or those of the first stage.
      stages: the first block of each stage; one stage unless blocks are pipelined.
      executor: the compiled step and evaluation.
      steps_per_epoch: whole batches in the training split.
      num_steps: of the whole run.
      eval_every: steps between evaluations.
      log_every: steps between log lines.
    """

    dataset: data.Input
    network: Network
    blocks: tuple[Block, ...]
    feed: Feed
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    placement: Placement
    stages: tuple[int, ...]
    executor: Executor
    steps_per_epoch: int
    num_steps: int
    eval_every: int
    log_every: int

    def init(self, config: ConfigDict) -> TrainState:
        """The state of a config's run before the first step: of its seed, or of all its seeds along a leading axis."""
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.dataset.example(1))
        keys = [jax.random.key(config.seed + i) for i in range(config.seeds)]
        with user_input("model"):
            return self.executor.init(keys[0] if len(keys) == 1 else jnp.stack(keys), batch)

    def batches(self, config: ConfigDict, steps: range, resident: Any = None) -> Generator[Any, None, None]:
        """The data of each step of a config's run; ``resident`` if they are on the devices before. Close it."""
        if resident is None:
            resident = self.dataset.resident(self.placement)
        seeds = [config.seed + i for i in range(config.seeds)]
        return _readable(self.dataset.train(self.placement, resident, steps, config.batch_size, seeds))

    def whole(self, state: TrainState) -> TrainState:
        """The state as every process can save it."""
        step, key = processes.everywhere((state.step, state.key))
        return TrainState(step, key, self.executor.gather(state.blocks))

    def is_logged(self, step: int) -> bool:
        """Whether the metrics of a step, counted from 1, make a line."""
        return step % self.log_every == 0 or step == self.num_steps

    def abstract_batch(self, config: ConfigDict) -> Any:
        """Shapes and dtypes of a step's data."""
        shape: tuple[int, ...] = (config.batch_size,)
        if self.placement.axis is not None:
            size = len(self.placement.devices)
            shape = (size, config.batch_size // size)
        return self.dataset.abstract(shape if config.seeds == 1 else (config.seeds, *shape))


def _readable(batches: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """A damaged example ends the program with one line."""
    try:
        yield from batches
    except data.UnreadableError as error:
        raise UserError(str(error)) from error


def build(config: ConfigDict, dataset: data.Input | None = None) -> Experiment:
    """Builds a config, cheapest checks first.

    Args:
      config: as :mod:`experiments.configs` makes them.
      dataset: the one that the config names, if it was loaded before.

    Raises:
      UserError: if anything in the config is wrong, or the data set is missing.
    """
    check_fields(config)
    dtype = DTYPES[one_of("dtype", config.dtype, tuple(DTYPES))]
    executor = EXECUTORS[one_of("executor", config.executor, tuple(EXECUTORS))]
    one_of("on_divergence", config.on_divergence, ON_DIVERGENCE)
    if not 0 <= config.label_smoothing < 1:
        raise UserError(f"label_smoothing {config.label_smoothing}: choose 0 or more, below 1")
    if config.eval_batch_size < 1 or config.eval_examples < 0:
        raise UserError(
            f"eval_batch_size {config.eval_batch_size}, eval_examples {config.eval_examples}: "
            "choose 1 or more, and 0 (all) or more"
        )

    def prototypes() -> Any:
        assert dataset is not None  # when a network is initialised
        return dataset.prototypes()

    units = make("model", MODELS, config.model, **({"prototypes": prototypes} if config.model.name == "noprop" else {}))
    rule = make_rule(config.rule)
    trains = innermost(config.rule).name
    known = [name for name in RULES if name == "backprop" or name.startswith("noprop")]
    if config.model.name == "noprop" and trains not in known:
        choices = ", ".join(known)
        raise UserError(f"model noprop denoises labels, which rule {trains} cannot read: choose one of {choices}")
    with user_input("cuts"):
        cuts = parse_cuts(config.cuts, units)
        blocks_of(Network(units, cuts or ()))
    durations = {name: parse_duration(config[name], name) for name in ("duration", "eval_every", "log_every")}
    dataset = dataset or _load(config)
    with user_input("model"):
        if cuts is None:
            costs = activations(units, dataset.example(1).input)
            cuts = cut_balanced(costs, int(config.cuts.removeprefix("balanced:")))
    with user_input("cuts and rule"):
        made = rule(Network(units, cuts), dataset.task._replace(loss=loss_of(config)))
        if isinstance(made, LocalRule) or not isinstance(made, tuple):
            raise TypeError(f"{trains} has to return (network, LocalRule)")
        network, local_rule = made
        blocks = make_blocks(network, local_rule)
    with user_input("batch_size"):
        per_epoch = data.steps_per_epoch(dataset.num_train, config.batch_size)
    steps = {name: max(1, round(n * (per_epoch if unit else 1))) for name, (n, unit) in durations.items()}
    if config.accumulate > steps["duration"]:
        raise UserError(
            f"accumulate {config.accumulate} of {steps['duration']} steps in all: not one update would be made"
        )
    if steps["duration"] >= 2**31:
        raise UserError(f"duration {config.duration!r}: {steps['duration']} steps are too many, choose fewer than 2^31")
    rate = _schedule(config, steps["duration"], per_epoch)

    def schedule(step: Any) -> Any:
        """The rate of the update that a step belongs to."""
        return rate(step // config.accumulate * config.accumulate)

    optimizer = make(
        "optimizer", OPTIMIZERS, config.optimizer, learning_rate=lambda update: rate(update * config.accumulate)
    )
    if config.accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, config.accumulate).gradient_transformation()
    where = placements(config, len(blocks))
    example = dataset.example(config.batch_size // len(where[0].devices))
    stages = starts(where, blocks, local_rule.feed, optimizer, example, dtype)
    options = {
        "prepare": dataset.prepare,
        "dtype": dtype,
        "batch_axes": dataset.batch_axes,
        "seeds": config.seeds > 1,
        **({"placements": where, "starts": stages} if executor is pipelined else {"placement": where[0]}),
    }
    return Experiment(
        dataset=dataset,
        network=network,
        blocks=blocks,
        feed=local_rule.feed,
        optimizer=optimizer,
        schedule=schedule,
        placement=where[0],
        stages=(0, *stages),
        executor=executor(blocks, local_rule.feed, optimizer, **options),
        steps_per_epoch=per_epoch,
        num_steps=steps["duration"],
        eval_every=steps["eval_every"],
        log_every=steps["log_every"],
    )


def loss_of(config: ConfigDict) -> losses.Loss:
    """What a config's rule is given as the loss of class scores."""
    if not config.label_smoothing:
        return losses.cross_entropy
    return functools.partial(losses.cross_entropy, label_smoothing=config.label_smoothing)


def _load(config: ConfigDict) -> data.Input:
    """The config's data set: in memory, or streamed."""
    name, data_dir = config.dataset, config.data_dir or None
    try:
        with user_input("dataset"):
            if data.is_small(name):
                dataset = data.load(name, data_dir)
            else:
                options = {"image_size": config.image_size, "workers": config.workers}
                streamed_set = data.Streamed(name, data_dir, test_examples=config.eval_examples, **options)
                if not config.augment:
                    raise ValueError(f"{name} is streamed, with crops of its own: augment=False is for sets in memory")
                if config.seeds > 1:
                    raise ValueError(f"{name} is streamed, for one seed: seeds {config.seeds} train one by one")
                return streamed_set
    except data.MissingDataError as error:
        raise UserError(
            f"{error}: run `python -m experiments.prepare --dataset={config.dataset}`, or name the TFDS directory "
            "that holds it by --config.data_dir or TFDS_DATA_DIR"
        ) from error
    except (OSError, MemoryError) as error:
        raise UserError(f"data set {name} cannot be read or kept: {error}") from error
    if config.eval_examples:
        dataset = dataset._replace(test=data.Split(*(x[: config.eval_examples] for x in dataset.test)))
    with user_input("dataset"):
        return data.InMemory(dataset, augment=config.augment)


def check_fields(config: ConfigDict) -> None:
    """Every field is there, and of the type that the shared configs give it.

    Raises:
      UserError: otherwise.
    """
    examples = common.digits()
    for name in config:
        one_of("config field", name, tuple(examples))
    for name, example in examples.items():
        if name not in config:
            raise UserError(f"the config has no field {name!r}: see experiments/configs/common.py")
        if not fits(config[name], type(example)):
            shown = f", as {example!r}" if not isinstance(example, ConfigDict) else ""
            raise UserError(f"config field {name}={config[name]!r}: expected {type(example).__name__}{shown}")
    for name in ("model", "rule", "optimizer"):
        if not isinstance(config[name].get("name"), str):
            raise UserError(f"config field {name} has no name: give {name}.name, see --list")
    if config.seed < 0 or config.seed + config.seeds > 2**32 or config.seeds < 1 or config.accumulate < 1:
        raise UserError(
            f"seed {config.seed}, seeds {config.seeds}, accumulate {config.accumulate}: "
            "choose 0 or more, below 2^32, and 1 or more of the others"
        )
    if config.image_size < 1 or config.workers < 0 or config.stages < 0:
        raise UserError(
            f"image_size {config.image_size}, workers {config.workers}, stages {config.stages}: choose 1 or more, and "
            "0 (no process; as many stages as fit) or more"
        )


def _schedule(config: ConfigDict, num_steps: int, per_epoch: int) -> optax.Schedule:
    """The learning rate by name; a schedule that cannot train in this duration is refused."""
    one_of("schedule", config.schedule, ("cosine", "constant"))
    if config.learning_rate <= 0 or config.warmup_epochs < 0 or config.warmup_start < 0:
        raise UserError(
            f"learning_rate {config.learning_rate}, warmup_epochs {config.warmup_epochs}, warmup_start "
            f"{config.warmup_start}: the first must be above 0, the others 0 or more"
        )
    if config.schedule == "constant":
        return optax.constant_schedule(config.learning_rate)
    epochs = num_steps / per_epoch
    if epochs <= 1 or config.warmup_epochs >= epochs:
        raise UserError(
            f"the cosine schedule goes by epochs and ends at zero: {epochs:.2g} epochs with {config.warmup_epochs} of "
            "warm-up never reach the learning rate; train longer, warm up less, or set --config.schedule=constant"
        )
    return cosine_with_warmup(config.learning_rate, epochs, per_epoch, config.warmup_epochs, config.warmup_start)


def parse_cuts(text: str, units: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Reads ``all``, ``even:K``, ``balanced:K`` or indices such as ``1,4,7``.

    Returns:
      The cuts; None for ``balanced:K``, which depend on the size of the images.

    Raises:
      ValueError: if it is none of these, or does not fit the units.
    """
    if text == "all":
        return cut_everywhere(units)
    if match := re.fullmatch(r"even:(\d+)", text):
        return cut_evenly(units, int(match[1]))
    if match := re.fullmatch(r"balanced:(\d+)", text):
        cut_balanced([1.0] * len(units), int(match[1]))  # raises if there are not as many units
        return None
    if re.fullmatch(r"\d+(,\d+)*", text):
        return tuple(int(cut) for cut in text.split(","))
    raise ValueError(
        f"{text!r} given; write all, even:K or balanced:K (K blocks), auto:SIZE (of memory, as auto:6GiB), "
        "or the first unit of each block, as 1,4,7"
    )


def parse_memory(text: str, field: str) -> int:
    """Reads ``6GiB``, ``512MiB`` or ``800KiB``: bytes.

    Raises:
      UserError: if it is none of these, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT])iB", text)
    size = round(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1)) if match else 0
    if not size:
        raise UserError(f"{field} {text!r}: write a size above zero in KiB, MiB, GiB or TiB, as 6GiB")
    return size


def parse_duration(text: str, field: str = "duration") -> tuple[float, bool]:
    """Reads ``400 epochs`` or ``200 steps``.

    Returns:
      ``(number, whether it counts epochs)``.

    Raises:
      UserError: if it is neither, or not positive.
    """
    match = re.fullmatch(r"([0-9.]+) *(epoch|step)s?", text)
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    if not match or not 0 < number < 2**63:
        raise UserError(f"{field} {text!r}: write a positive number of epochs or steps, as '400 epochs'")
    return number, match[2] == "epoch"


def describe(experiment: Experiment, state: TrainState, seeds: int = 1) -> dict[str, Any]:
    """Cuts and parameter counts, for ``config.json`` and the first lines on the terminal.

    Everything but running statistics is counted. The network's own classifier, which is the
    last block's head, counts with the network.
    """

    def counts(block: BlockState) -> dict[str, int]:
        kept = {collection: tree for collection, tree in block.variables.items() if collection != RUNNING}
        own = pick(kept, "head")
        head = size(own) - (size(classifier_of(own)) if block is state.blocks[-1] else 0)
        return {"network": (size(kept) - head) // seeds, "head": head // seeds}

    return {
        "units": len(experiment.network.units),
        "cuts": list(experiment.network.cuts),
        "stages": list(experiment.stages),
        "parameters": [counts(block) for block in state.blocks],
        "train_examples": experiment.dataset.num_train,
        "test_examples": experiment.dataset.num_test,
        "steps_per_epoch": experiment.steps_per_epoch,
        "num_steps": experiment.num_steps,
    }


def classifier_of(head: Variables) -> Variables:
    """The network's own classifier: the last block's head, or what is called ``output`` of it, if it holds more."""
    for name in ("output", "inner"):  # of a sum of objectives, and behind an adapter
        head = pick(head, name) if any(name in tree for tree in head.values()) else head
    return head


def environment() -> dict[str, str]:
    """Versions, a checksum of the library's files, and device, for the record."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {
        "python": platform.python_version(),
        "jaxlocal": jaxlocal.__version__,
        **{name: metadata.version(name) for name in packages},
    }
    device = jax.devices()[0]
    return {
        **versions,
        "code": _checksum_of_library(),
        "device": device.device_kind,
        "platform": device.platform,
        "host_cpus": str(os.cpu_count()),
    }


@functools.cache
def _checksum_of_library() -> str:
    checksum = 0
    for path in sorted(Path(jaxlocal.__file__).parent.rglob("*.py")):
        checksum = zlib.crc32(path.read_bytes(), checksum)
    return f"{checksum:08x}"


def evaluate(experiment: Experiment, state: TrainState, config: ConfigDict) -> list[list[dict[str, float]]]:
    """For each seed, the metrics of each exit on the whole test split, weighted by the size of each chunk."""
    totals: list[list[dict[str, float]]] = [[{} for _ in experiment.blocks] for _ in range(config.seeds)]

    def add(count: int, metrics: BlockMetrics) -> None:
        for seed_totals, blocks in zip(totals, by_seed(experiment.executor.gather(metrics)), strict=True):
            for total, block in zip(seed_totals, blocks, strict=True):
                for name, x in block.items():
                    total[name] = total.get(name, 0.0) + x * count / experiment.dataset.num_test

    pending: deque[tuple[int, BlockMetrics]] = deque()
    with closing(_readable(experiment.dataset.test(experiment.placement, config.eval_batch_size))) as chunks:
        for count, chunk in chunks:
            pending.append((count, experiment.executor.evaluate(state, chunk)))
            if len(pending) > 2:  # of the chunks that are under way, each is in memory
                add(*pending.popleft())
    for counted in pending:
        add(*counted)
    return totals
