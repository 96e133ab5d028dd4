"""A trained network without its auxiliary heads, and a card about it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util
from safetensors import SafetensorError

from experiments.app.errors import UserError
from experiments.app.files import load_safetensors
from experiments.drawing.tables import aligned
from experiments.recipe.experiment import Blocks, classifier_of
from experiments.training.metrics import metrics_of
from experiments.training.trained import Trained
from jaxlocal.rules.deep_supervision import Tap
from jaxlocal.rules.dfa import Isolated
from jaxlocal.variables import RUNNING, Variables, pick, size

WEIGHTS = "model.safetensors"
SHOWN = 20  # names of classes, at most


def backbone(run: Trained) -> dict[str, Variables]:
    """The variables of every unit, and of the network's own classifier, by name."""
    parts: dict[str, Variables] = {}
    for block, state in zip(run.experiment.blocks, run.state.blocks, strict=True):
        for j, unit in enumerate(block.units):
            own = pick(state.variables, f"unit_{j}")
            parts[f"unit_{len(parts)}"] = pick(own, "unit") if isinstance(unit, Isolated | Tap) else own
    parts["classifier"] = classifier_of(pick(run.state.blocks[-1].variables, "head"))
    return jax.device_get({name: part for name, part in parts.items() if jax.tree.leaves(part)})


def load(directory: Path) -> dict[str, Variables]:
    """What :func:`backbone` gave, from the safetensors file of an exported network.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    try:
        flat = load_safetensors(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"no exported network in {directory}: {error}") from error
    return traverse_util.unflatten_dict(flat, sep=".")


def card(run: Trained, record: Mapping[str, Any], exits: Blocks, parts: Mapping[str, Variables]) -> str:
    """The model card, as Markdown."""
    config, dataset = run.experiment.config, run.experiment.dataset
    counted = sum(size([tree for c, tree in part.items() if c != RUNNING]) for part in parts.values())
    said = metrics_of(run.experiment)
    rows = [("exit", said.title, *(metric.title for metric in said.others))]
    columns = [[metric.said(x) for x in metric.at(exits)] for metric in said.columns]
    names = [*(f"{i + 1}, its head left out" for i in range(len(columns[0]) - 1)), "last, of this network"]
    rows += zip(names, *columns, strict=True)
    environment = ", ".join(f"{name} {value}" for name, value in record.get("environment", {}).items())
    network = (
        f"`{json.dumps(config.model.to_dict())}`: {len(run.experiment.network.units)} units, {counted:,} parameters"
    )
    task, shape = run.experiment.task, "x".join(map(str, run.experiment.input_shape))
    some = ", ".join(dataset.classes[:SHOWN]) + ", ..." * (len(dataset.classes) > SHOWN)
    classes = f"{task.num_classes} classes" + f": {some}" * bool(some)
    seen = f"{shape} images, normalised as in training on {config.dataset}; {classes}"
    knows, name = "classes and the examples", "unit_3.params.conv1.kernel"
    if task.each:
        seen = f"windows of up to {shape} tokens out of {task.num_classes}, numbered as in training on {config.dataset}"
        knows, name = "vocabulary and the text", next(iter(traverse_util.flatten_dict(parts, sep=".")))
    facts = {
        "Network": f"{network} with the classifier. Auxiliary heads were left out.",
        "Rule": f"`{json.dumps(config.rule.to_dict())}`, cuts {list(run.experiment.network.cuts)}.",
        "Input": f"{seen}.",
        "Training": f"{run.step} steps of {config.batch_size} examples, seed {config.seed}; see `config.json`.",
        "Files": f"`{WEIGHTS}` (tensors named `{name}`) and `orbax` hold the same.",
        "Made with": f"{environment}.",
        "Limits": f"made for research. It knows the {knows} of {config.dataset}; no other was tested.",
        "Evaluation": f"this checkpoint, on {dataset.num_test:,} test examples of {config.dataset}:",
    }
    title = f"# {config.model.name} on {config.dataset}, trained by {config.rule.name}"
    lines = "\n".join(f"- **{name}**: {fact}" for name, fact in facts.items())
    return f"{title}\n\n{lines}\n\n{aligned(rows)}\n"
