"""Reference names: how the tensors of the authors' PyTorch code are called here.

The one table between the two worlds. A *reference name* is a key of the authors'
``state_dict``; a *path* is where the tensor lives in a block's variables, for
instance ``('params', 'unit_0', 'conv1', 'kernel')``.
"""

import bisect
import itertools
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from jaxlocal.variables import Variables

Path = tuple[str, ...]

LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

# Submodule here -> submodule there, for each kind of unit and head.
RESIDUAL_UNIT = {
    "conv1": "conv1",
    "bn1": "bn1",
    "conv2": "conv2",
    "bn2": "bn2",
    "conv3": "conv3",
    "bn3": "bn3",
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
TRANSFORMER_LAYER = {
    "norm1": "ln_1",
    "qkv": "attn.c_attn",
    "projection": "attn.c_proj",
    "norm2": "ln_2",
    "hidden": "mlp.c_fc",
    "output": "mlp.c_proj",
}
TIMM_LAYER = {
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "projection": "attn.proj",
    "norm2": "norm2",
    "hidden": "mlp.fc1",
    "output": "mlp.fc2",
}
EMBEDDING = {"tokens": "wte", "positions": "wpe"}
# Heads of objectives with several terms: term -> (module there, its submodules).
TERM_HEADS = {
    "similarity": ("decoder", {"conv": "decoder.0"}),
    "prediction": ("aux_classifier", {"dense": "head.2"}),
    "reconstruction": ("decoder", {"conv1": "decoder.0", "norm": "decoder.1", "conv2": "decoder.3"}),
    "label": ("aux_classifier", {"conv": "head.0", "norm": "head.1", "dense1": "head.5", "dense2": "head.7"}),
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


class Layout(NamedTuple):
    """How the authors' residual network is laid out, and torchvision's, which has no auxiliary heads.

    Attributes:
      stages: residual units in each stage.
      output: name of the final classifier.
      stem_head: whether the first block is the stem under a MAN auxiliary of its own name.
    """

    stages: tuple[int, ...]
    output: str = "fc"
    stem_head: bool = False

    @property
    def classifier(self) -> tuple[str, ...]:
        """The tensors that class scores come from."""
        return f"{self.output}.weight", f"{self.output}.bias"

    def prefix(self, unit: int) -> str:
        """Unit 0 is the stem, whose tensors have no prefix; the others are ``layer{stage}.{i}.``."""
        stage, i = self.stage_and_layer(unit)
        return f"layer{stage}.{i}." if stage else ""

    def stage_and_layer(self, unit: int) -> tuple[int, int]:
        """How the reference counts units: the stem is (0, 0), then stages 1, 2, 3 ..."""
        if unit == 0:
            return 0, 0
        ends = list(itertools.accumulate(self.stages))
        stage = bisect.bisect_left(ends, unit)
        return stage + 1, unit - 1 - (0, *ends)[stage]

    def unit(self, stage: int, layer: int) -> int:
        """The inverse of :meth:`stage_and_layer`."""
        return 0 if stage == 0 else sum(self.stages[: stage - 1]) + layer + 1

    def auxiliary(self, kind: str, block: int) -> str:
        """MAN's module ``kind`` of a block: numbered, the stem's apart."""
        if self.stem_head:
            return {"EMA_Net": "EMA"}.get(kind, kind) + "_first" if block == 0 else f"{kind}.{block - 1}"
        return f"{kind}.{block}"

    def names(
        self, variables: Variables, block: int, first_unit: int, num_units: int, *, is_last: bool
    ) -> Iterator[tuple[Path, str]]:
        """Yields ``(path, reference name)`` for every tensor of one block."""
        flat = traverse_util.flatten_dict(dict(variables))
        under_man = any(path[1:3] == ("head", "adapter") for path in flat)
        head_names = {path[3 if under_man else 2] for path in flat if path[1] == "head"}
        plain_head = CONV_MLP_HEAD if "conv1" in head_names else units_head(head_names)
        reads_from = first_unit + num_units - 1 + under_man
        # The heads of MAN on the stem are called after the stem itself.
        at = "{}_{}".format(*self.stage_and_layer(0 if self.stem_head and block == 0 else reads_from))
        for path in flat:
            part, *modules, leaf = path[1:]
            if part != "head":
                prefix = self.prefix(first_unit + int(part.removeprefix("unit_")))
                yield path, prefix + _dotted(RESIDUAL_UNIT, modules, leaf)
            elif is_last:
                yield path, f"{self.output}.{LEAF[leaf]}"
            elif path[2:] == ("adapter", "scale"):
                yield path, self.auxiliary("ema_s", block)
            elif modules[0] == "adapter":
                kind = "LB" if modules[1] == "unit" else "EMA_Net"
                yield path, f"{self.auxiliary(kind, block)}." + _dotted(RESIDUAL_UNIT, modules[2:], leaf)
            else:
                modules = modules[1:] if under_man else modules
                if modules[0] in TERM_HEADS:
                    module, table = TERM_HEADS[modules[0]]
                    yield path, f"{module}_{at}.{_dotted(table, modules[1:], leaf)}"
                else:
                    yield path, f"aux_classifier_{at}.{_dotted({**RESIDUAL_UNIT, **plain_head}, modules, leaf)}"


def _dotted(table: Mapping[str, str], modules: list[str], leaf: str) -> str:
    first, *inner = modules
    return ".".join([table[first], *(RESIDUAL_UNIT[module] for module in inner), LEAF[leaf]])


class GptLayout(NamedTuple):
    """How nanoGPT names the tensors of a transformer, and golden files those of auxiliary heads.

    Attributes:
      classifier: none that could be left out: what reads a vocabulary also puts it out.
    """

    classifier: tuple[str, ...] = ()

    def names(
        self, variables: Variables, block: int, first_unit: int, num_units: int, *, is_last: bool
    ) -> Iterator[tuple[Path, str]]:
        """As :meth:`Layout.names`."""
        del block
        end = "" if is_last else f"aux.{first_unit + num_units}."
        for path in traverse_util.flatten_dict(dict(variables)):
            part, *modules, leaf = path[1:]
            if part == "head":
                modules = modules[1:] if modules[0] == "output" else modules
                if modules[0].startswith("units_"):
                    layer = f"{end}h.{modules[0].removeprefix('units_')}.{TRANSFORMER_LAYER[modules[1]]}"
                else:
                    norm = "transformer.ln_f" if is_last else f"{end}ln_f"
                    layer = {"norm": norm, "dense": f"{end}lm_head"}[modules[0]]
            elif leaf in EMBEDDING:
                layer = f"transformer.{EMBEDDING[leaf]}"
            else:
                unit = first_unit + int(part.removeprefix("unit_"))
                layer = f"transformer.h.{unit - 1}.{TRANSFORMER_LAYER[modules[0]]}"
            yield path, f"{layer}.{LEAF.get(leaf, 'weight')}"


class VitLayout(NamedTuple):
    """How timm names the tensors of a vision transformer.

    Attributes:
      norm: the one at the end, ``fc_norm`` behind the mean of the patches, ``norm`` in front of it.
      classifier: the tensors that class scores come from.
    """

    norm: str
    classifier: tuple[str, ...] = ("head.weight", "head.bias")

    def names(
        self, variables: Variables, block: int, first_unit: int, num_units: int, *, is_last: bool
    ) -> Iterator[tuple[Path, str]]:
        """As :meth:`Layout.names`; auxiliary heads have none."""
        del block, num_units
        for path in traverse_util.flatten_dict(dict(variables)):
            part, *modules, leaf = path[1:]
            if part == "head":
                layer = {"norm": self.norm, "dense": "head"}[modules[0] if is_last else "an auxiliary head"]
            elif leaf == "positions":
                yield path, "pos_embed"
                continue
            elif modules[0] == "patches":
                layer = "patch_embed.proj"
            else:
                unit = first_unit + int(part.removeprefix("unit_"))
                layer = f"blocks.{unit - 1}.{TIMM_LAYER[modules[0]]}"
            yield path, f"{layer}.{LEAF[leaf]}"


def to_reference(x: np.ndarray, path: Path = ()) -> np.ndarray:
    """Our layout to PyTorch's: HWIO to OIHW, IO to OI; the rows of an embedding stay what they are."""
    if path and path[-1] in EMBEDDING:
        return x
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T


def from_reference(x: np.ndarray, path: Path = ()) -> np.ndarray:
    """PyTorch's layout to ours; the inverse of :func:`to_reference`."""
    if path and path[-1] in EMBEDDING:
        return x
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


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


def golden_batch(n: int, size: int, seed: int, dataset: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The batch of a golden file.

    Returns:
      ``(normalised images [n, size, size, 3] in float64, labels [n], the images in [0, 1])``.
    """
    rng = np.random.default_rng(seed)
    pixels, label = rng.uniform(size=(n, size, size, 3)), rng.integers(0, 10, size=n)
    mean, std = NORMALISATION["cifar" if dataset.startswith("cifar") else "other"]
    return (pixels - np.array(mean) / 255) / (np.array(std) / 255), label, pixels


# Mean and standard deviation of the authors' code, in units of 1/255.
NORMALISATION: Mapping[str, Any] = {
    "cifar": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "other": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
}
