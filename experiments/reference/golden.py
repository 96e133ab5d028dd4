"""Networks and rules that golden files describe."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.app.errors import UserError
from experiments.reference import names as reference
from experiments.reference.names import GptLayout, Layout
from jaxlocal import block as block_lib
from jaxlocal import models, rules
from jaxlocal.block import Block
from jaxlocal.feed import Feed
from jaxlocal.heads import Units, classifier
from jaxlocal.network import Network
from jaxlocal.objective import Batch, LocalObjective
from jaxlocal.readouts import readout
from jaxlocal.rule import Rule, at_each_cut
from jaxlocal.task import Task


class Built(NamedTuple):
    """A golden file's network, ready to run."""

    blocks: tuple[Block, ...]
    first_units: tuple[int, ...]
    layout: Layout | GptLayout
    feed: Feed
    batch: Batch


def _predsim(golden: Mapping[str, Any]) -> Rule:
    (similarity, last_s), (prediction, last_p) = golden["extra_loss_weight_first_last"], golden["ce_weight_first_last"]
    if (similarity, prediction) != (last_s, last_p):
        raise ValueError("PredSim's weights are the same for every block; the file's change")
    return rules.predsim(similarity, prediction)


def _infopro(golden: Mapping[str, Any]) -> Rule:
    return rules.infopro(
        golden["extra_loss_weight_first_last"],
        golden["ce_weight_first_last"],
        contrast=golden.get("loss_mode") == "contrast",
    )


def _infopro_under_man(golden: Mapping[str, Any]) -> Rule:
    """MAN's code interpolates on the number of the stage that the next unit belongs to."""
    depth = _depth(golden)
    layout = Layout(((depth - 2) // 6,) * 3)
    ratios = [
        layout.stage_and_layer(layout.unit(*after) + 1)[0] / max(1, golden["K"] - 2)
        for after in golden["cut_after"][:-1]
    ]

    def weights(first: float, last: float) -> tuple[float, ...]:
        return tuple(first * (1 - ratio) + last * ratio for ratio in ratios)

    return rules.infopro(
        weights(*golden["recon_weight_first_last"]),
        weights(*golden["ce_weight_first_last"]),
        contrast=golden["loss_mode"] == "contrast",
    )


def _man(base: Callable[[Mapping[str, Any]], Rule], *, scale: bool = False) -> Callable[[Mapping[str, Any]], Rule]:
    return lambda golden: rules.man(base(golden), golden["momentum"], start="independent", scale=scale)


RULES: Mapping[str, Callable[[Mapping[str, Any]], Rule]] = {
    "BP": lambda golden: rules.backprop(),
    "DGL": lambda golden: rules.dgl(),
    "AugLocal": lambda golden: rules.auglocal(
        golden["aux_net_depth"], golden["pyramid_coeff"] if golden["pyramid"] else 0.0
    ),
    "PredSim": _predsim,
    "InfoPro": _infopro,
    "MAN on InfoPro": _man(_infopro_under_man),
    "MAN on DGL": _man(lambda golden: rules.dgl()),
    "MAN++ on InfoPro": _man(_infopro_under_man, scale=True),
    "MAN++ on DGL": _man(lambda golden: rules.dgl(), scale=True),
}


def _depth(golden: Mapping[str, Any]) -> int:
    match = re.fullmatch(r"resnet(\d+)", str(golden["arch"]))
    if not match:
        raise ValueError(f"network {golden['arch']!r}: served are CIFAR ResNets, resnet32 and the like")
    return int(match[1])


def cuts_of(golden: Mapping[str, Any], layout: Layout) -> tuple[int, ...]:
    """The cuts of a golden file: listed, or after every unit that has a local loss."""
    if "cut_after" in golden:
        after = golden["cut_after"][:-1]
        return (1,) * layout.stem_head + tuple(layout.unit(*at) + 1 for at in after)
    return tuple(layout.unit(entry["stage"], entry["layer"]) + 1 for entry in golden["local_losses"])


def build(golden: Mapping[str, Any]) -> Built:
    """Builds the network and rule of a golden file.

    Raises:
      UserError: if the file describes something that is not served.
    """
    if golden["arch"] == "gpt":
        return _gpt(golden)
    depth = _depth(golden)
    units = models.resnet(depth)
    if golden["rule"] not in RULES:
        raise UserError(f"golden file of rule {golden['rule']!r}: served are {', '.join(RULES)}")
    output = "fc64" if "fc64.weight" in shapes_of(golden) else "fc"
    layout = Layout(((depth - 2) // 6,) * 3, output, golden.get("stem_head", False))
    observed = cuts_of(golden, layout)
    # AugLocal's file lists the blocks that are left; the rule itself drops the last d of K - 1 cuts.
    cuts = tuple(range(1, golden["K"])) if golden["rule"] == "AugLocal" else observed
    rule = RULES[golden["rule"]](golden)
    network, local_rule = rule(Network(units, cuts), Task(shapes_of(golden)[f"{output}.weight"][0]))
    if network.cuts != observed:
        raise UserError(f"the file's blocks end before units {observed}, the rule's before {network.cuts}")
    batch = reference.golden_batch(golden["batch"], golden["image_size"], golden["seed"], golden["dataset"])
    blocks = block_lib.make_blocks(network, local_rule)
    return Built(blocks, (0, *network.cuts), layout, local_rule.feed, Batch(*(jnp.asarray(x) for x in batch)))


def _gpt(golden: Mapping[str, Any]) -> Built:
    """A transformer whose heads are a norm and an unembedding, behind layers where the file says so."""
    fields = ("layers", "heads", "features", "context", "vocabulary", "bias", "tied")
    units = models.gpt(**{field: golden[field] for field in fields})
    network, task = Network(units, tuple(golden["cuts"])), Task(golden["vocabulary"], each=True)
    end = classifier(units, task)

    def objective(i: int) -> LocalObjective:
        depth = golden["head_layers"][str(network.cuts[i])]
        return readout(Units(units[-depth:], task.num_classes, output=end) if depth else end)

    local_rule = at_each_cut(network, task, objective)
    rng = np.random.default_rng(golden["seed"])
    shape = golden["batch"], golden["context"]
    tokens, labels = (jnp.asarray(rng.integers(0, golden["vocabulary"], size=shape)) for _ in range(2))
    blocks = block_lib.make_blocks(network, local_rule)
    return Built(blocks, (0, *network.cuts), GptLayout(), local_rule.feed, Batch(tokens, labels))


def shapes_of(golden: Mapping[str, Any]) -> Mapping[str, Sequence[int]]:
    """The shapes of a file's tensors, by name."""
    return golden["state_shapes"] if "state_shapes" in golden else golden["param_shapes"]
