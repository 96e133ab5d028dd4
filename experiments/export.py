r"""Takes a trained network out of a run, without its auxiliary heads: safetensors, Orbax, and a model card.

.. code-block:: shell

    python -m experiments.export --workdir=/tmp/digits --output=/tmp/model

Tensors are called ``unit_3.params.conv1.kernel``: the unit's number, the collection, the path in the unit. The
network's own classifier is ``classifier``. :func:`load` reads them back.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from experiments.build import classifier_of, evaluate
from experiments.cli import UserError, run, saving
from experiments.summary import aligned, exit_errors
from experiments.trained import Trained, one_seed, restore
from experiments.workdir import load_record
from jaxlocal.rules.deep_supervision import Tap
from jaxlocal.rules.dfa import Isolated
from jaxlocal.variables import RUNNING, Variables, pick, size

WEIGHTS = "model.safetensors"


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
        with safe_open(str(directory / WEIGHTS), framework="numpy") as file:
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"no exported network in {directory}: {error}") from error
    return traverse_util.unflatten_dict(flat, sep=".")


def card(run: Trained, record: Mapping[str, Any], errors: Sequence[float], parts: Mapping[str, Variables]) -> str:
    """The model card, as Markdown."""
    config, dataset = run.config, run.experiment.dataset
    counted = sum(size([tree for c, tree in part.items() if c != RUNNING]) for part in parts.values())
    rows = [("exit", "test error %")]
    names = [*(f"{i + 1}, its head left out" for i in range(len(errors) - 1)), "last, of this network"]
    rows += [(name, f"{x:.2f}" if np.isfinite(x) else "-") for name, x in zip(names, errors, strict=True)]
    environment = ", ".join(f"{name} {value}" for name, value in record.get("environment", {}).items())
    network = (
        f"`{json.dumps(config.model.to_dict())}`: {len(run.experiment.network.units)} units, {counted:,} parameters"
    )
    image = "x".join(map(str, dataset.example(1).input.shape[1:]))
    facts = {
        "Network": f"{network} with the classifier. Auxiliary heads were left out.",
        "Rule": f"`{json.dumps(config.rule.to_dict())}`, cuts {list(run.experiment.network.cuts)}.",
        "Input": f"{image} images, normalised as in training on {config.dataset}; {dataset.task.num_classes} classes.",
        "Training": f"{run.step} steps of {config.batch_size} examples, seed {config.seed}; see `config.json`.",
        "Files": f"`{WEIGHTS}` (tensors named `unit_3.params.conv1.kernel`) and `orbax` hold the same.",
        "Made with": f"{environment}.",
        "Limits": f"made for research. It knows the classes and the images of {config.dataset}; no other was tested.",
        "Evaluation": f"this checkpoint, on {dataset.num_test:,} test examples of {config.dataset}:",
    }
    title = f"# {config.model.name} on {config.dataset}, trained by {config.rule.name}"
    lines = "\n".join(f"- **{name}**: {fact}" for name, fact in facts.items())
    return f"{title}\n\n{lines}\n\n{aligned(rows)}\n"


def main(argv: Sequence[str]) -> None:
    """Writes weights, config and card."""
    del argv
    if not _WORKDIR.value or not _OUTPUT.value:
        raise UserError("--workdir and --output are needed: the directory of the run, and one for the network")
    workdir, output = Path(_WORKDIR.value), Path(_OUTPUT.value)
    trained = one_seed(restore(workdir, _CHECKPOINT.value))
    parts = backbone(trained)
    flat = traverse_util.flatten_dict(parts, sep=".")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} is not an empty directory: give a new one")
    errors = exit_errors(evaluate(trained.experiment, trained.state, trained.config)[0])
    with saving(output):
        output.mkdir(parents=True, exist_ok=True)
        about = {"format": "jaxlocal", "model": json.dumps(trained.config.model.to_dict()), "step": str(trained.step)}
        (output / WEIGHTS).write_bytes(save({name: np.ascontiguousarray(x) for name, x in flat.items()}, about))
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save((output / "orbax").absolute(), parts)
        except ValueError as error:  # of TensorStore
            raise OSError(str(error).splitlines()[0]) from error
        (output / "config.json").write_text(json.dumps(trained.config.to_dict(), indent=2) + "\n")
        (output / "README.md").write_text(card(trained, load_record(workdir), errors, parts))
    print(f"{len(flat)} tensors of {len(parts)} parts at step {trained.step}: {output}")


if __name__ == "__main__":  # flags are the program's: as modules, several are used together
    _WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
    _OUTPUT = flags.DEFINE_string("output", None, "A directory for the network; new, or empty.")
    _CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")
    run(main)
