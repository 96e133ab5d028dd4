"""Weights that others trained in PyTorch, as a state of a run."""

import contextlib
import functools
import inspect
import re
import zipfile
from collections.abc import Callable, Mapping
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
from experiments.recipe.registry import MODELS
from experiments.reference.names import GptLayout, Layout, VitLayout, from_reference
from jaxlocal.block import BlockState
from jaxlocal.executors import TrainState
from jaxlocal.models.imagenet_resnet import BLOCKS


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
    if unknown := [name for name, x in tensors.items() if x.dtype.name.startswith("void")]:
        raise UserError(
            f"--weights={path}: {unknown[0]!r} is of a dtype that .npz cannot name: give a .safetensors file"
        )
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


def as_timm(tensors: Mapping[str, np.ndarray], model: Mapping[str, Any], side: int) -> dict[str, np.ndarray]:
    """The tensors of a timm ViT, laid out as ours: patches by a dense layer, whose bias is the positions' part.

    Args:
      tensors: of the file.
      model: the config's, defaults too.
      side: of an image.

    Raises:
      UserError: if the model computes something else.
    """
    for name in ("cls_token", "dist_token", "reg_token"):
        if name in tensors:
            raise UserError(
                f"--weights has a {name}, and vit has patches alone: it takes what timm made with class_token=False "
                "and global_pool='avg'"
            )
    if model["norm"] != "layer" or model["epsilon"] != 1e-6:
        raise UserError("--weights are of timm, whose norms are other ones: give the model norm='layer', epsilon=1e-6")
    pooled = "fc_norm.weight" in tensors
    if pooled != model["pooled"]:
        where = "behind" if pooled else "in front of"
        raise UserError(f"--weights has its last norm {where} the mean of the patches: give the model pooled={pooled}")
    new: dict[str, np.ndarray] = {name: x.astype(np.float32) for name, x in tensors.items()}
    kernel, positions = (new.get(name, np.empty((1, 0))) for name in ("patch_embed.proj.weight", "pos_embed"))
    if kernel.ndim == 4:
        new["patch_embed.proj.weight"] = kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)
    patch = model["patch"]
    grid = side // patch
    if positions.shape[1] != grid**2:
        raise UserError(
            f"--weights has positions of {positions.shape[1]} patches, where images of {side}x{side} pixels in patches "
            f"of {patch}x{patch} have {grid**2}: give images of the size that the weights were trained on"
        )
    new["pos_embed"] = (positions + new.pop("patch_embed.proj.bias", 0)).reshape(grid, grid, -1)
    return new


def layout_of(
    experiment: Experiment, tensors: Mapping[str, np.ndarray]
) -> tuple[Layout | GptLayout | VitLayout, dict[str, np.ndarray]]:
    """How the tensors of a config's model are named, and they themselves as those names mean them.

    Raises:
      UserError: if the model has no reference names, or computes something else than that of the tensors.
    """
    given = experiment.config.model
    if given.name == "gpt":
        new = as_nanogpt(tensors, given)
        if given.get("tied", False) and not experiment.network.cuts:
            own = new.pop("lm_head.weight", None)
            if own is not None and not np.array_equal(own, new["transformer.wte.weight"]):
                raise UserError("--weights has an unembedding that is not the embedding's table: untie the model")
        return GptLayout(), new
    if given.name not in ("resnet", "imagenet_resnet", "resnext", "vit"):
        raise UserError(
            f"model {given.name}: names of weights are known for resnet, imagenet_resnet, resnext, vit and gpt alone"
        )
    defaults = inspect.signature(MODELS[given.name]).parameters.items()
    model: Any = {name: parameter.default for name, parameter in defaults} | given.to_dict()
    if given.name == "vit":
        return VitLayout("fc_norm" if model["pooled"] else "norm"), as_timm(tensors, model, experiment.input_shape[0])
    if given.name != "resnet":
        return Layout(BLOCKS[model["depth"]]), dict(tensors)
    output = "fc64" if "fc64.weight" in tensors else "fc"
    return Layout(((model["depth"] - 2) // 6,) * 3, output, any("_first" in name for name in tensors)), dict(tensors)


def filled(
    experiment: Experiment, state: TrainState, tensors: Mapping[str, Any], say: Callable[[str], None] = print
) -> TrainState:
    """The state with every tensor taken from the reference.

    Heads of earlier blocks of which the file has nothing stay as they were initialised. So does the classifier of an
    image model if the file has none, or one of another number of classes. That is said.

    Raises:
      UserError: if the network has no reference names, or other tensors are missing, left over, or of another shape.
    """
    config, classes = experiment.config, experiment.task.num_classes
    if config.seeds != 1:
        raise UserError(f"seeds {config.seeds}: weights are of one network, give 1")
    layout, tensors = layout_of(experiment, tensors)
    in_file = {len(tensors[name]) for name in layout.classifier if name in tensors}
    left_out = set(layout.classifier) if len(in_file) < 2 and in_file != {classes} else set()
    firsts, fresh = (0, *experiment.network.cuts), 0
    used: set[str] = set()
    blocks = []
    for i, (block, own, first) in enumerate(zip(experiment.blocks, state.blocks, firsts, strict=True)):
        last = i == len(firsts) - 1
        names_of = functools.partial(layout.names, block=i, first_unit=first, num_units=len(block.units), is_last=last)
        units, head = ({c: _part(of, wanted) for c, of in own.variables.items()} for wanted in (False, True))
        try:
            names = dict(names_of(units)) | (dict(names_of(head)) if last else {})
        except (KeyError, IndexError) as error:
            of = f"model {config.model.name}, rule {config.rule.name}"
            raise UserError(f"{of}: its tensors have no reference names ({error})") from error
        if not last:
            with contextlib.suppress(KeyError, IndexError):  # there is no such head in any file
                of_head = dict(names_of(head))
                names |= of_head if tensors.keys() & set(of_head.values()) else {}
            fresh += not any(path[1] == "head" for path in names)
        new = traverse_util.flatten_dict(dict(own.variables))
        for path, name in names.items():
            if name in left_out:
                continue
            if name not in tensors:
                raise UserError(f"--weights has no tensor {name!r}: it is not of this config's network and rule")
            value = from_reference(tensors[name], path)
            if value.shape != new[path].shape:
                raise UserError(f"tensor {name} is of shape {value.shape} (here {new[path].shape}): another network's")
            new[path] = jnp.asarray(value, new[path].dtype)
            used.add(name)
        blocks.append(BlockState(traverse_util.unflatten_dict(new), own.opt_state))
    if left := sorted(tensors.keys() - used - left_out):
        raise UserError(f"--weights has {len(left)} tensors that this network has not, as {left[0]!r}")
    if fresh:
        say(f"the file has nothing of {fresh} auxiliary heads: they stay as they were initialised")
    if left_out:
        has = f"is of {in_file.pop()} classes, {config.dataset} has {classes}" if in_file else "is not in the file"
        say(f"the classifier {has}: it stays as it was initialised")
    return TrainState(jnp.asarray(experiment.num_steps, state.step.dtype), state.key, tuple(blocks))


def _part(of_block: Mapping[str, Any], is_head: bool) -> dict[str, Any]:
    """The units of one collection of a block, or its head."""
    return {name: tree for name, tree in of_block.items() if (name == "head") == is_head}
