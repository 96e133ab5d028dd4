"""Weights that the authors' PyTorch code trained, as a state of a run."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from experiments.app.errors import UserError
from experiments.recipe.experiment import Experiment
from experiments.reference.names import Layout, from_reference
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


def filled(experiment: Experiment, state: TrainState, tensors: Mapping[str, Any]) -> TrainState:
    """The state with every tensor taken from the reference.

    Raises:
      UserError: if the network has no reference, or tensors are missing, left over, or of another shape.
    """
    config = experiment.config
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
