"""The same step in plain PyTorch, for ``experiments.speed --against=torch``; all that knows of torch is here.

A *twin* of a case is made from the very units and heads that the case has: CIFAR ResNets and GPTs under backprop, DGL
and AugLocal, GPTs under greedy too. It has as many parameters, and the same losses on the same weights (a test compares
them). It learns from one batch that stays, without augmentation, which our step does as well.
"""

import functools
import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from experiments.app.calls import parse_call
from experiments.app.errors import UserError
from experiments.cost.timed import Runner, timed
from experiments.recipe.noise import windows_of
from experiments.recipe.registry import MODELS, make
from experiments.trials import torch_gpt
from experiments.trials.cases import Case
from jaxlocal.executors.cost import cores
from jaxlocal.heads import ConvMlp, Units, classifier
from jaxlocal.models.resnet import BasicBlock, Stem
from jaxlocal.network import Network, blocks_of
from jaxlocal.rules.auglocal import auglocal, auxiliary_head, depth_schedule
from jaxlocal.task import Task

LAYOUTS = ("channels_last", "contiguous_format")  # of images: the faster one, and NCHW as in the authors' code
RULES = {"resnet": ("backprop", "dgl", "auglocal"), "gpt": ("backprop", "greedy", "dgl", "auglocal")}


class Twin(NamedTuple):
    """Blocks, each with its head and its optimizer.

    Attributes:
      blocks: modules that put out the next block's input.
      heads: modules that put out class scores.
      optimizers: one for each block.
      clip: largest norm of a block's gradient; 0 for any.
    """

    blocks: Sequence[Any]
    heads: Sequence[Any]
    optimizers: Sequence[Any]
    clip: float = 0.0

    @property
    def parameters(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for module in (*self.blocks, *self.heads) for p in module.parameters())

    def step(self, x: Any, label: Any) -> list[Any]:
        """One update of every block in order: the loss of each, before."""
        losses = []
        nn = pytorch().nn
        for block, head, optimizer in zip(self.blocks, self.heads, self.optimizers, strict=True):
            optimizer.zero_grad()
            x = block(x.detach())
            loss = nn.functional.cross_entropy(head(x).flatten(0, -2), label.flatten())
            loss.backward()
            if self.clip:
                nn.utils.clip_grad_norm_([*block.parameters(), *head.parameters()], self.clip)
            optimizer.step()
            losses.append(loss.detach())
        return losses


def pytorch() -> Any:
    """The library.

    Raises:
      UserError: if it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("--against=torch needs PyTorch: pip install 'jaxlocal[torch]'") from error
    return torch


def has_twin(case: Case) -> bool:
    """Whether a case can be written in PyTorch here."""
    model, rule = parse_call(case.model, "models"), parse_call(case.rule, "rules")
    plain = case.dtype == "float32" and case.accumulate == 1 and case.executor == "fused"
    if not plain or rule["name"] not in RULES.get(model["name"], ()):
        return False
    if model["name"] == "resnet":
        return True
    return rule.get("tokens", 1) == 1 and all(map(torch_gpt.has_twin, make("model", MODELS, model)))


def steps(case: Case, network: Network, parameters: int) -> dict[str, Runner]:
    """For each layout, what takes so many steps of a case that :func:`has_twin`, and returns the seconds.

    Raises:
      ValueError: if the twin has another number of parameters, heads included.
    """
    torch = pytorch()
    torch.set_num_threads(cores())
    rng = np.random.default_rng(0)
    if windows := windows_of(parse_call(case.model, "models")):
        x, label = torch.tensor(rng.integers(windows.vocabulary, size=(2, case.batch_size, windows.context)))
    else:
        x = torch.tensor(rng.standard_normal((case.batch_size, 3, case.image, case.image)), dtype=torch.float32)
        label = torch.tensor(rng.integers(case.classes, size=case.batch_size))

    def turn(twin: Twin, x: Any, number: int) -> None:
        for _ in range(number):
            twin.step(x, label)

    found = {}
    for layout in LAYOUTS if not windows else ("tokens",):
        form = None if windows else getattr(torch, layout)
        twin = twin_of(case, network, form)
        if twin.parameters != parameters:
            raise ValueError(f"{case.label()} has {parameters} parameters, its twin in PyTorch {twin.parameters}")
        found[layout] = timed(functools.partial(turn, twin, x if form is None else x.to(memory_format=form)))
    return found


def twin_of(case: Case, network: Network, memory_format: Any = None) -> Twin:
    """The twin of a case, drawn at random; of images in a memory format of PyTorch's."""
    if windows := windows_of(parse_call(case.model, "models")):
        return _twin_on_tokens(case, network, windows.vocabulary)
    torch = pytorch()
    rule = parse_call(case.rule, "rules")
    blocks, heads, channels, side = [], [], 3, case.image
    for units, head in zip(blocks_of(network), _heads(network, rule, Task(case.classes)), strict=True):
        modules = []
        for unit in units:
            modules.append(_unit(unit, channels))
            channels, side = unit.features, math.ceil(side / getattr(unit, "strides", 1))
        blocks.append(torch.nn.Sequential(*modules).to(memory_format=memory_format))
        heads.append(_head(head, channels, side).to(memory_format=memory_format))
    optimizers = [
        torch.optim.SGD([*block.parameters(), *head.parameters()], 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
        for block, head in zip(blocks, heads, strict=True)
    ]
    return Twin(blocks, heads, optimizers)


def _twin_on_tokens(case: Case, network: Network, vocabulary: int) -> Twin:
    """Of a language model; AdamW as its recipe has it: matrices decay, a block's gradient is clipped."""
    torch, rule, features = pytorch(), parse_call(case.rule, "rules"), network.units[0].features
    found = _heads(network, rule, Task(vocabulary, each=True))
    blocks = [
        torch.nn.Sequential(*(torch_gpt.twin(torch, unit, features) for unit in units)) for units in blocks_of(network)
    ]
    heads = [torch_gpt.twin(torch, head, features) for head in found]
    options = case.config().optimizer
    optimizers = []
    for block, head in zip(blocks, heads, strict=True):
        parameters = [*block.parameters(), *head.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizers.append(torch.optim.AdamW(groups, 1e-3, betas=(options.b1, options.b2)))
    return Twin(blocks, heads, optimizers, options.clip)


def _heads(network: Network, rule: dict[str, Any], task: Task) -> list[nn.Module]:
    """Of each block; the last one has the network's own."""
    rule = {key: value for key, value in rule.items() if key != "tokens"}  # which is 1
    name, cuts = rule.pop("name"), network.cuts
    local: list[nn.Module]
    if name == "auglocal":
        options = {key: default.default for key, default in inspect.signature(auglocal).parameters.items()} | rule
        depths = depth_schedule(options["depth"], len(cuts) + 1, options["tau"])
        ends = zip(cuts, depths, strict=True)
        local = [auxiliary_head(network, cut - 1, d, task, options["width"]) for cut, d in ends]
    elif task.each:
        local = [classifier(network.units, task, hidden=name == "dgl", **rule) for _ in cuts]
    else:
        local = [ConvMlp(task.num_classes, **rule) for _ in cuts]
    return [*local, classifier(network.units, task)]


def _unit(unit: nn.Module, channels: int) -> Any:
    """A stem or a residual block, for an input of so many channels."""
    layers, features = pytorch().nn, unit.features
    if isinstance(unit, Stem):
        return layers.Sequential(*_normed_conv(channels, features, 3), layers.ReLU())
    assert isinstance(unit, BasicBlock)
    inner = layers.Sequential(
        *_normed_conv(channels, features, 3, unit.strides), layers.ReLU(), *_normed_conv(features, features, 3)
    )
    same = unit.strides == 1 and channels == features
    outer = layers.Identity() if same else layers.Sequential(*_normed_conv(channels, features, 1, unit.strides))

    class Residual(layers.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = inner, outer

        def forward(self, x: Any) -> Any:
            return pytorch().relu(self.inner(x) + self.outer(x))

    return Residual()


def _head(head: nn.Module, channels: int, side: int) -> Any:
    """Class scores of images of so many channels and pixels a side."""
    layers = pytorch().nn
    if isinstance(head, ConvMlp):
        hidden, pooled = max(1, int(channels * head.width)), math.ceil(side / 4)
        convs = [m for i in range(3) for m in (*_normed_conv(hidden if i else channels, hidden, 1), layers.ReLU())]
        flat = hidden * min(pooled, 2) ** 2
        dense = [
            m
            for _ in range(2)
            for m in (layers.Linear(flat, flat, bias=False), layers.BatchNorm1d(flat), layers.ReLU())
        ]
        pools = [layers.AdaptiveAvgPool2d(n) for n in (pooled, min(pooled, 2))]
        end = layers.Linear(flat, head.num_classes)
        return layers.Sequential(pools[0], *convs, pools[1], layers.Flatten(), *dense, end)
    modules = []
    for unit in head.units if isinstance(head, Units) else ():
        modules.append(_unit(unit, channels))
        channels = unit.features
    norm = [layers.BatchNorm1d(channels)] if getattr(head, "norm", False) else []
    end = layers.Linear(channels, head.num_classes)
    return layers.Sequential(*modules, layers.AdaptiveAvgPool2d(1), layers.Flatten(), *norm, end)


def _normed_conv(channels: int, features: int, kernel: int, strides: int = 1) -> tuple[Any, Any]:
    layers = pytorch().nn
    conv = layers.Conv2d(channels, features, kernel, strides, kernel // 2, bias=False)
    return conv, layers.BatchNorm2d(features)
