r"""Makes a run out of weights that the authors' PyTorch code trained: analyze it, start from it.

.. code-block:: shell

    python -m experiments.import_reference --config=experiments/configs/auglocal_cifar10.py \
        --weights=/tmp/auglocal.safetensors --workdir=/tmp/auglocal

The file is a ``state_dict`` as ``.safetensors`` or ``.npz``; names are translated by the table that
``experiments.parity`` uses. A ``.pth`` file can run code when it is opened, so none is: convert it where it was made,
by ``safetensors.torch.save_file(model.state_dict(), path)``.
"""

import zipfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from experiments.build import Experiment, build, describe, environment
from experiments.checkpoint import NOT_EVALUATED, Checkpoints, has_any
from experiments.cli import UserError, config_flag, run
from experiments.record import Recorder
from experiments.reference import Layout, from_reference
from experiments.training import test
from experiments.workdir import claimed
from jaxlocal.block import BlockState
from jaxlocal.executors import TrainState


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by their reference names. Nothing in it is executed.

    Raises:
      UserError: if it is of another kind, or cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        elif path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                tensors = dict(file)
        else:
            raise UserError(
                f"--weights={path}: give a .safetensors or .npz file; convert a .pth where it was made, by "
                "safetensors.torch.save_file(model.state_dict(), path)"
            )
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise UserError(f"--weights={path} cannot be read: {error}") from error
    # Networks wrapped for several devices have a prefix; counters of batches are of no use here.
    return {k.removeprefix("module."): x for k, x in tensors.items() if not k.endswith("num_batches_tracked")}


def filled(experiment: Experiment, config: ConfigDict, state: TrainState, tensors: Mapping[str, Any]) -> TrainState:
    """The state with every tensor taken from the reference.

    Raises:
      UserError: if the network has no reference, or tensors are missing, left over, or of another shape.
    """
    if config.model.name != "resnet" or config.seeds != 1:
        raise UserError(f"model {config.model.name}, seeds {config.seeds}: reference names are of one CIFAR resnet")
    output = "fc64" if "fc64.weight" in tensors else "fc"
    stem_head = any("_first" in name for name in tensors)
    layout = Layout((config.model.depth - 2) // 6, output, stem_head)
    firsts = (0, *experiment.network.cuts)
    used: set[str] = set()
    blocks = []
    for i, (block, own, first) in enumerate(zip(experiment.blocks, state.blocks, firsts, strict=True)):
        last = i == len(firsts) - 1
        try:
            names = dict(layout.names(own.variables, i, first, len(block.units), is_last=last))
        except (KeyError, IndexError) as error:
            raise UserError(f"rule {config.rule.name}: its tensors have no reference names ({error})") from error
        new = {}
        for path, x in traverse_util.flatten_dict(dict(own.variables)).items():
            if names[path] not in tensors:
                raise UserError(f"--weights has no tensor {names[path]!r}: it is not of this config's network and rule")
            value = from_reference(tensors[names[path]])
            if value.shape != x.shape:
                raise UserError(f"tensor {names[path]} is of shape {value.shape} (here {x.shape}): another network's")
            new[path] = jnp.asarray(value, x.dtype)
            used.add(names[path])
        blocks.append(BlockState(traverse_util.unflatten_dict(new), own.opt_state))
    if left := sorted(tensors.keys() - used):
        raise UserError(f"--weights has {len(left)} tensors that this network has not, as {left[0]!r}")
    return TrainState(jnp.asarray(experiment.num_steps, state.step.dtype), state.key, tuple(blocks))


def main(argv: Sequence[str]) -> None:
    """Writes a finished run: its config, one checkpoint, and its test errors."""
    del argv
    config = _CONFIG()
    if not _WEIGHTS.value or not _WORKDIR.value:
        raise UserError("--weights and --workdir are needed: the file, and a new directory for the run")
    workdir = Path(_WORKDIR.value)
    if has_any(workdir):
        raise UserError(f"workdir {workdir} holds a run with checkpoints: give a new one")
    tensors = read(Path(_WEIGHTS.value))
    experiment = build(config)
    state = filled(experiment, config, experiment.init(config), tensors)
    about = describe(experiment, state)
    step = experiment.num_steps
    with claimed(workdir, config, about, environment()), closing(Checkpoints(workdir)) as checkpoints:
        with closing(Recorder(workdir, step)) as recorder:
            exits = test(step, state, config, experiment, recorder)[0]
        checkpoints.save(step, state, exits[-1].get("accuracy", NOT_EVALUATED))
    print(f"{len(tensors)} tensors: {workdir}; now python -m experiments.analyze --workdir={workdir}")


if __name__ == "__main__":  # flags are the program's: as modules, several are used together
    _CONFIG = config_flag("The network and rule of the weights: a file of experiments/configs.")
    _WEIGHTS = flags.DEFINE_string("weights", None, "The state_dict: a .safetensors or .npz file.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "A new directory for the run.")
    run(main)
