"""Reference names: how the tensors of the authors' PyTorch code are called here.

The one table between the two worlds. A *reference name* is a key of the authors'
``state_dict``; a *path* is where the tensor lives in a block's variables, for
instance ``('params', 'unit_0', 'conv1', 'kernel')``.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from jaxlocal.block import Block
from jaxlocal.variables import Variables

Path = tuple[str, ...]

LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

# Submodule here -> submodule there, for each kind of unit and head.
RESIDUAL_UNIT = {
    "conv1": "conv1",
    "bn1": "bn1",
    "conv2": "conv2",
    "bn2": "bn2",
    "proj_conv": "downsample.0",
    "proj_bn": "downsample.1",
}
CONV_MLP_HEAD = {
    **{f"conv{i}": f"head.{3 * i - 2}" for i in (1, 2, 3)},
    **{f"conv{i}_bn": f"head.{3 * i - 1}" for i in (1, 2, 3)},
    "dense1": "head.12",
    "dense1_bn": "head.13",
    "dense2": "head.15",
    "dense2_bn": "head.16",
    "dense": "head.18",
}


def units_head(names: set[str]) -> dict[str, str]:
    """AugLocal's head is a list: units, pool, flatten, batch norm if any, dense."""
    n = sum(name.startswith("units_") for name in names)
    after = n + 2
    return {
        **{f"units_{j}": f"head.{j}" for j in range(n)},
        "norm": f"head.{after}",
        "dense": f"head.{after + ('norm' in names)}",
    }


def unit_prefix(index: int, per_stage: int) -> str:
    """Unit 0 is the stem, whose tensors have no prefix; the others are ``layer{stage}.{i}.``."""
    if index == 0:
        return ""
    stage, i = divmod(index - 1, per_stage)
    return f"layer{stage + 1}.{i}."


def stage_and_layer(index: int, per_stage: int) -> tuple[int, int]:
    """How the reference counts units: the stem is (0, 0), then stages 1, 2, 3."""
    return (0, 0) if index == 0 else ((index - 1) // per_stage + 1, (index - 1) % per_stage)


def reference_names(
    block: Block, variables: Variables, first_unit: int, per_stage: int, *, is_last: bool
) -> Iterator[tuple[Path, str]]:
    """Yields ``(path, reference name)`` for every tensor of one block."""
    flat = traverse_util.flatten_dict(dict(variables))
    head_names = {path[2] for path in flat if path[1] == "head"}
    stage, layer = stage_and_layer(first_unit + len(block.units) - 1, per_stage)
    head_table = CONV_MLP_HEAD if "conv1" in head_names else units_head(head_names)
    for path in flat:
        _, part, *modules, leaf = path
        if part != "head":
            index = first_unit + int(part.removeprefix("unit_"))
            prefix = unit_prefix(index, per_stage)
            module = ".".join(RESIDUAL_UNIT[m] for m in modules)
        elif is_last:
            prefix, module = "", "fc"
        else:
            prefix = f"aux_classifier_{stage}_{layer}."
            module = ".".join(head_table[m] if i == 0 else RESIDUAL_UNIT[m] for i, m in enumerate(modules))
        yield path, f"{prefix}{module}.{LEAF[leaf]}"


def _flattened_channels(path: Path, variables: Variables) -> int | None:
    """Channels of the image that a dense layer's input was flattened from, where it was."""
    if path[1:] != ("head", "dense1", "kernel"):
        return None
    return variables["params"]["head"]["conv3"]["kernel"].shape[-1]


def to_reference(path: Path, x: np.ndarray, variables: Variables) -> np.ndarray:
    """Our layout to PyTorch's: HWIO to OIHW, IO to OI, flattened (h, w, c) to (c, h, w)."""
    if x.ndim == 4:
        return x.transpose(3, 2, 0, 1)
    if x.ndim != 2:
        return x
    if c := _flattened_channels(path, variables):
        side = math.isqrt(x.shape[0] // c)
        return x.reshape(side, side, c, -1).transpose(3, 2, 0, 1).reshape(x.shape[1], -1)
    return x.T


def from_reference(path: Path, x: np.ndarray, variables: Variables) -> np.ndarray:
    """PyTorch's layout to ours; the inverse of :func:`to_reference`."""
    if x.ndim == 4:
        return x.transpose(2, 3, 1, 0)
    if x.ndim != 2:
        return x
    if c := _flattened_channels(path, variables):
        side = math.isqrt(x.shape[1] // c)
        return x.reshape(-1, c, side, side).transpose(2, 3, 1, 0).reshape(x.shape[1], -1)
    return x.T


def reference_shape(path: Path, shape: tuple[int, ...], variables: Variables) -> tuple[int, ...]:
    """The shape of a tensor in PyTorch's layout."""
    return to_reference(path, np.empty(shape, np.bool_), variables).shape


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor that a golden file means by a reference name: float64, reference layout."""
    if name.endswith("running_mean"):
        return np.zeros(shape)
    if name.endswith("running_var"):
        return np.ones(shape)
    z = _normal(name, shape)
    if len(shape) == 4:
        return z * math.sqrt(2 / (shape[2] * shape[3] * shape[0]))
    if len(shape) == 2:
        return z * math.sqrt(1 / shape[1])
    return 1 + 0.1 * z if name.endswith("weight") else 0.1 * z


def probe(name: str, x: np.ndarray) -> dict[str, float]:
    """What golden files hold of a tensor: its norm, and its product with a fixed random tensor."""
    return {"norm": float(np.linalg.norm(x)), "probe": float(np.sum(x * _normal(f"probe/{name}", x.shape)))}


def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def golden_batch(n: int, size: int, seed: int, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """The batch of a golden file: normalised images ``[n, size, size, 3]`` in float64, labels ``[n]``."""
    rng = np.random.default_rng(seed)
    image, label = rng.uniform(size=(n, size, size, 3)), rng.integers(0, 10, size=n)
    mean, std = NORMALISATION["cifar" if dataset.startswith("cifar") else "other"]
    return (image - np.array(mean) / 255) / (np.array(std) / 255), label


# Mean and standard deviation of the authors' code, in units of 1/255.
NORMALISATION: Mapping[str, Any] = {
    "cifar": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "other": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
}
