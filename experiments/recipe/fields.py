"""What the fields of a config may hold, and what they mean."""

import functools
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from experiments.app.errors import UserError, one_of
from experiments.configs import common
from experiments.recipe.registry import DTYPES, EXECUTORS, fits
from jaxlocal import data, losses
from jaxlocal.data.own import is_text
from jaxlocal.network import cut_balanced, cut_evenly, cut_everywhere
from jaxlocal.optimizers import cosine_with_warmup, stepwise, warmup_cosine

ON_DIVERGENCE = ("stop", "skip", "rollback")
IN_MEMORY = ("auto", "yes", "no")
_NUMBERS = re.compile(r"\d+(,\d+)*")


def plain(config: ConfigDict | FrozenConfigDict) -> ConfigDict:
    """A copy in which numbers of NumPy and JAX are Python's, as they are in a file: a notebook may have set them."""

    def number(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {name: number(of) for name, of in x.items()}
        if isinstance(x, list | tuple):
            return type(x)(map(number, x))
        return x.item() if isinstance(x, np.generic | np.ndarray | jax.Array) and x.ndim == 0 else x

    return ConfigDict(number(config.to_dict()))


def check_fields(config: ConfigDict | FrozenConfigDict) -> None:
    """Every field is there, of the type that the shared configs give it, and of a value that makes sense by itself.

    Raises:
      UserError: otherwise.
    """
    config, examples = ConfigDict(config), common.digits()
    for name in config:
        one_of("config field", name, tuple(examples))
    for name, example in examples.items():
        if name not in config:
            raise UserError(f"the config has no field {name!r}: see experiments/configs/common.py")
        numbers = isinstance(example, tuple)
        if not fits(config[name], Sequence[float] if numbers else type(example)):
            shown = f", as {example!r}" if not isinstance(example, ConfigDict | tuple) else " of numbers" * numbers
            raise UserError(f"config field {name}={config[name]!r}: expected {type(example).__name__}{shown}")
        if isinstance(example, str) and not is_text(config[name]):
            raise UserError(f"config field {name}={config[name]!r} is not UTF-8: rename what it names, or give another")
    for name in ("model", "rule", "optimizer"):
        if not isinstance(config[name].get("name"), str):
            raise UserError(f"config field {name} has no name: give {name}.name, see --list")
    if config.seed < 0 or config.seed + config.seeds > 2**32 or config.seeds < 1 or config.accumulate < 1:
        raise UserError(
            f"seed {config.seed}, seeds {config.seeds}, accumulate {config.accumulate}: "
            "choose 0 or more, below 2^32, and 1 or more of the others"
        )
    if min(config.image_size, config.workers, config.stages, config.split_seed) < 0:
        raise UserError(
            f"image_size {config.image_size}, workers {config.workers}, stages {config.stages}, split_seed "
            f"{config.split_seed}: choose 0 (the images' own size; no process; as many stages as fit) or more"
        )
    choices = {
        "dtype": DTYPES,
        "executor": EXECUTORS,
        "on_divergence": ON_DIVERGENCE,
        "augment": data.AUGMENTS,
        "in_memory": IN_MEMORY,
    }
    for name, known in choices.items():
        one_of(name, config[name], tuple(known))
    if not 0 <= config.label_smoothing < 1:
        raise UserError(f"label_smoothing {config.label_smoothing}: choose 0 or more, below 1")
    if config.eval_batch_size < 1 or config.eval_examples < 0:
        raise UserError(
            f"eval_batch_size {config.eval_batch_size}, eval_examples {config.eval_examples}: "
            "choose 1 or more, and 0 (all) or more"
        )


def schedule_of(config: FrozenConfigDict, num_steps: int, per_epoch: int) -> optax.Schedule:
    """The learning rate by name; a schedule that cannot train in this duration is refused."""
    one_of("schedule", config.schedule, ("cosine", "constant", "steps", "warmup_cosine"))
    if config.learning_rate <= 0 or config.warmup_epochs < 0 or config.warmup_start < 0:
        raise UserError(
            f"learning_rate {config.learning_rate}, warmup_epochs {config.warmup_epochs}, warmup_start "
            f"{config.warmup_start}: the first must be above 0, the others 0 or more"
        )
    if config.schedule == "constant":
        return optax.constant_schedule(config.learning_rate)
    if config.schedule == "steps":
        ends = [int(end) for end in config.milestones.split(",")] if _NUMBERS.fullmatch(config.milestones) else []
        if not ends or any(a >= b for a, b in pairwise((0, *ends))) or not 0 < config.decay <= 1:
            raise UserError(
                f"milestones {config.milestones!r}, decay {config.decay}: write the epochs after which the rate falls, "
                "1 or more and rising, as 50,75, and what it is multiplied by, above 0, at most 1"
            )
        return stepwise(config.learning_rate, [n * per_epoch for n in ends], config.decay)
    if config.schedule == "warmup_cosine":
        warmup, end = config.warmup_steps, config.learning_rate_end
        if not 0 <= warmup < num_steps or not 0 <= end <= config.learning_rate:
            raise UserError(
                f"warmup_steps {warmup} of {num_steps}, learning_rate_end {end} after {config.learning_rate}: warm up "
                "for fewer steps than there are, and end at 0 or more, at most at the learning rate"
            )
        return warmup_cosine(config.learning_rate, num_steps, warmup, end)
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
    if _NUMBERS.fullmatch(text):
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
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) *(epoch|step)s?", text)
    number = float(match[1]) if match else 0.0
    if not match or not 0 < number < 2**63:
        raise UserError(f"{field} {text!r}: write a positive number of epochs or steps, as '400 epochs'")
    return number, match[2] == "epoch"


def loss_of(config: FrozenConfigDict) -> losses.Loss:
    """What a config's rule is given as the loss of class scores."""
    if not config.label_smoothing:
        return losses.cross_entropy
    return functools.partial(losses.cross_entropy, label_smoothing=config.label_smoothing)
