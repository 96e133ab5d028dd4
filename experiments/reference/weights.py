"""Weights that the authors' PyTorch code trained, as a state of a run."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import FrozenConfigDict
from safetensors import SafetensorError

from experiments.app.errors import UserError
from experiments.app.files import load_safetensors
from experiments.recipe.experiment import Experiment
from experiments.reference.names import GptLayout, Layout, from_reference
from jaxlocal.block import BlockState
from jaxlocal.executors import TrainState


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by their reference names. Nothing in it is executed.

    Raises:
      UserError: if it is of another kind, or cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_safetensors(path)
        elif path.suffix == ".npz":
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                tensors = dict(file)
        else:
            raise UserError(
                f"--weights={path}: give a .safetensors or .npz file; convert a .pth where it was made, by "
                "safetensors.torch.save_model(model, path)"
            )
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise UserError(f"--weights={path} cannot be read: {error}") from error
    # Networks wrapped for several devices, or compiled, have a prefix; counters of batches are of no use here.
    bare = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): x for name, x in tensors.items()}
    return {name: x for name, x in bare.items() if not name.endswith("num_batches_tracked")}


def as_nanogpt(tensors: Mapping[str, np.ndarray], model: FrozenConfigDict) -> dict[str, np.ndarray]:
    """The tensors of a GPT-2, Hugging Face's or nanoGPT's, as nanoGPT's code names them and lays them out.

    Those of Hugging Face have no prefix, or the same one; masks among them; dense layers as ``[in, out]``. A tied
    unembedding is in the file once or twice, under either name: here it is a tensor of its own.

    Raises:
      UserError: if the model computes something else.
    """
    if model.get("norm", "layer") != "layer":
        raise UserError(f"model.norm {model.norm}: the norms of GPT-2 are of mean and deviation, set it to layer")
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    new = {
        name if name.startswith("lm_head.") else f"transformer.{name}": x
        for name, x in bare.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    tied = ("transformer.wte.weight", "lm_head.weight")
    for name, other in (tied, tied[::-1]):
        if other in new:
            new.setdefault(name, new[other])
    qkv = new.get("transformer.h.0.attn.c_attn.weight", np.empty((3, 1)))
    if qkv.ndim == 2 and qkv.shape[0] < qkv.shape[1]:
        if not model.get("approximate", False):
            raise UserError(
                "--weights are laid out as Hugging Face's, whose GPT-2 has GELU by tanh: give the model "
                "approximate=True"
            )
        dense = re.compile(r"\.(attn|mlp)\.c_\w+\.weight$")
        new = {name: x.T if dense.search(name) else x for name, x in new.items()}
    return new


def filled(experiment: Experiment, state: TrainState, tensors: Mapping[str, Any]) -> TrainState:
    """The state with every tensor taken from the reference.

    Raises:
      UserError: if the network has no reference, or tensors are missing, left over, or of another shape.
    """
    config = experiment.config
    if config.model.name not in ("resnet", "gpt") or config.seeds != 1:
        raise UserError(f"model {config.model.name}, seeds {config.seeds}: reference names are of one resnet or gpt")
    layout: Layout | GptLayout = GptLayout()
    if config.model.name == "gpt":
        tensors = as_nanogpt(tensors, config.model)
        if config.model.get("tied", False) and not experiment.network.cuts:
            own = tensors.pop("lm_head.weight", None)
            if own is not None and not np.array_equal(own, tensors["transformer.wte.weight"]):
                raise UserError("--weights has an unembedding that is not the embedding's table: untie the model")
    else:
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
            of = f"model {config.model.name}, rule {config.rule.name}"
            raise UserError(f"{of}: its tensors have no reference names ({error})") from error
        new = {}
        for path, x in traverse_util.flatten_dict(dict(own.variables)).items():
            if names[path] not in tensors:
                raise UserError(f"--weights has no tensor {names[path]!r}: it is not of this config's network and rule")
            value = from_reference(tensors[names[path]], path)
            if value.shape != x.shape:
                raise UserError(f"tensor {names[path]} is of shape {value.shape} (here {x.shape}): another network's")
            new[path] = jnp.asarray(value, x.dtype)
            used.add(names[path])
        blocks.append(BlockState(traverse_util.unflatten_dict(new), own.opt_state))
    if left := sorted(tensors.keys() - used):
        raise UserError(f"--weights has {len(left)} tensors that this network has not, as {left[0]!r}")
    return TrainState(jnp.asarray(experiment.num_steps, state.step.dtype), state.key, tuple(blocks))
