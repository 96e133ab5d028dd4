"""From a config to everything a run needs. Whatever is wrong with the config is said here."""

from typing import Any

import flax.linen as nn
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from experiments.app.calls import innermost
from experiments.app.errors import UserError, user_input
from experiments.recipe.datasets import load
from experiments.recipe.devices import placements, starts
from experiments.recipe.experiment import Experiment
from experiments.recipe.fields import check_fields, loss_of, parse_cuts, parse_duration, plain, schedule_of
from experiments.recipe.registry import DTYPES, EXECUTORS, MODELS, OPTIMIZERS, RULES, make, make_rule
from jaxlocal import data
from jaxlocal.block import make_blocks
from jaxlocal.executors import pipelined
from jaxlocal.network import Network, activations, blocks_of, cut_balanced
from jaxlocal.rule import LocalRule


def build(config: ConfigDict | FrozenConfigDict, dataset: data.Input | None = None) -> Experiment:
    """Builds a config, cheapest checks first. What comes of it has the config inside.

    Args:
      config: as :mod:`experiments.configs` makes them.
      dataset: the one that the config names, if it was loaded before.

    Raises:
      UserError: if anything in the config is wrong, or the data set is missing.
    """
    config = plain(config)
    check_fields(config)
    with user_input("config"):
        config = FrozenConfigDict(config)
    executor = EXECUTORS[config.executor]

    def prototypes() -> Any:
        assert dataset is not None  # when a network is initialised
        return dataset.prototypes()

    units = make("model", MODELS, config.model, **({"prototypes": prototypes} if config.model.name == "noprop" else {}))
    if not isinstance(units, tuple) or not units or not all(isinstance(unit, nn.Module) for unit in units):
        raise UserError(
            f"model {config.model.name} returns a {type(units).__name__}: a tuple of units is expected, Linen modules; "
            "jaxlocal.sequential.units_of cuts a Sequential, jaxlocal.bridge.nnx_unit takes a module of NNX"
        )
    rule = make_rule(config.rule)
    trains = innermost(config.rule)["name"]
    known = [name for name in RULES if name == "backprop" or name.startswith("noprop")]
    if config.model.name == "noprop" and trains not in known:
        choices = ", ".join(known)
        raise UserError(f"model noprop denoises labels, which rule {trains} cannot read: choose one of {choices}")
    with user_input("cuts"):
        cuts = parse_cuts(config.cuts, units)
        blocks_of(Network(units, cuts or ()))
    durations = {name: parse_duration(config[name], name) for name in ("duration", "eval_every", "log_every")}
    dataset = dataset or load(config, units[0])
    task = dataset.task._replace(loss=loss_of(config))
    vocabulary = getattr(units[0], "vocabulary", None)
    if task.each != (vocabulary is not None):
        asked = "reads tokens" if vocabulary else "reads images"
        raise UserError(f"model {config.model.name} {asked}, which data set {config.dataset} has not: choose another")
    if task.each and vocabulary != task.num_classes:
        raise UserError(f"model.vocabulary {vocabulary}: set it to {task.num_classes}, as {config.dataset} has tokens")
    with user_input("model"):
        if cuts is None:
            costs = activations(units, dataset.example(1).input)
            cuts = cut_balanced(costs, int(config.cuts.removeprefix("balanced:")))
    with user_input("cuts and rule"):
        made = rule(Network(units, cuts), task)
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
    rate = schedule_of(config, steps["duration"], per_epoch)

    def schedule(step: Any) -> Any:
        """The rate of the update that a step belongs to."""
        return rate(step // config.accumulate * config.accumulate)

    optimizer = make(
        "optimizer", OPTIMIZERS, config.optimizer, learning_rate=lambda update: rate(update * config.accumulate)
    )
    if config.accumulate > 1:
        optimizer = optax.MultiSteps(optimizer, config.accumulate).gradient_transformation()
    where, dtype = placements(config, len(blocks)), DTYPES[config.dtype]
    example = dataset.example(config.batch_size // len(where[0].devices))
    stages = starts(config, where, blocks, local_rule.feed, optimizer, example, dtype)
    options = {
        "prepare": dataset.prepare,
        "dtype": dtype,
        "batch_axes": dataset.batch_axes,
        "seeds": config.seeds > 1,
        **({"placements": where, "starts": stages} if executor is pipelined else {"placement": where[0]}),
    }
    return Experiment(
        config=config,
        dataset=dataset,
        task=task,
        dtype=dtype,
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


def rebuilt(experiment: Experiment, **fields: Any) -> Experiment:
    """The same data under a config that differs in these fields."""
    return build(changed(experiment.config, **fields), experiment.dataset)


def changed(config: ConfigDict | FrozenConfigDict, **fields: Any) -> ConfigDict:
    """A copy of a config with other values in these fields."""
    return ConfigDict({**config.to_dict(), **fields})
