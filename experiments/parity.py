"""Does this code compute what the authors' code computes?

.. code-block:: shell

    python -m experiments.parity --golden=tests/golden/bp_resnet32.json

Builds the network and rule that a golden file describes, fills every tensor by its
reference name, runs the forward and local backward pass of every block in float64 on
the CPU and prints one JSON line with the worst relative errors. Exit code 0: all are
below 1e-6; 1: some are not; 2: the file cannot be served.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import traverse_util

from experiments import reference
from experiments.cli import UserError, run, user_input
from jaxlocal import block as block_lib
from jaxlocal import models, rules
from jaxlocal.block import Block
from jaxlocal.executors import init_state
from jaxlocal.feed import Feed
from jaxlocal.network import Network
from jaxlocal.objective import Batch, Carry
from jaxlocal.rule import Rule
from jaxlocal.variables import Variables

_GOLDEN = flags.DEFINE_multi_string("golden", [], "Golden file to compare with; may be given more than once.")

TOLERANCE = 1e-6
MOMENTUM = 0.1  # PyTorch's: the weight of the new statistic
# A tensor whose gradient is zero in exact arithmetic (a bias before batch norm) has rounding
# noise for a reference: its error counts relative to this much of the file's largest norm.
NOISE_FLOOR = 1e-8

RULES = {
    "BP": lambda golden: rules.backprop(),
    "DGL": lambda golden: rules.dgl(),
    "AugLocal": lambda golden: rules.auglocal(
        golden["aux_net_depth"], golden["pyramid_coeff"] if golden["pyramid"] else 0.0
    ),
}


class Built(NamedTuple):
    """A golden file's network, ready to run."""

    blocks: tuple[Block, ...]
    first_units: tuple[int, ...]
    per_stage: int
    feed: Feed
    batch: Batch


def build(golden: Mapping[str, Any]) -> Built:
    """Builds the network and rule of a golden file.

    Raises:
      UserError: if the file describes something that is not served.
    """
    depth = int(str(golden["arch"]).removeprefix("resnet"))
    units = models.resnet(depth)
    per_stage = (depth - 2) // 6
    if golden["rule"] not in RULES:
        raise UserError(f"golden file of rule {golden['rule']!r}: served are {', '.join(RULES)}")
    if any(weights != {"extra": 0.0, "ce": 1.0} for weights in golden["applied_weights"]):
        raise UserError(f"golden file of rule {golden['rule']!r} with loss weights other than extra 0, ce 1")
    rule: Rule = RULES[golden["rule"]](golden)
    observed = tuple(
        index + 1
        for entry in golden["local_losses"]
        for index in range(len(units))
        if reference.stage_and_layer(index, per_stage) == (entry["stage"], entry["layer"])
    )
    # AugLocal's file lists the blocks that are left; the rule itself drops the last d of K - 1 cuts.
    cuts = tuple(range(1, golden["K"])) if golden["rule"] == "AugLocal" else observed
    network, local_rule = rule(Network(units, cuts), golden["state_shapes"]["fc.weight"][0])
    if network.cuts != observed:
        raise UserError(f"the file's blocks end before units {observed}, the rule's before {network.cuts}")
    image, label = reference.golden_batch(golden["batch"], golden["image_size"], golden["seed"], golden["dataset"])
    blocks = block_lib.make_blocks(network, local_rule)
    return Built(blocks, (0, *network.cuts), per_stage, local_rule.feed, Batch(jnp.asarray(image), jnp.asarray(label)))


def batch_norm_counts(block: Block, variables: Variables, carry: Carry, batch: Batch) -> dict[reference.Path, int]:
    """How many values each running statistic of a block averages over, by its path."""
    counts: dict[reference.Path, int] = {}

    def trace(variables: Variables, carry: Carry) -> None:
        statistics = traverse_util.flatten_dict({"batch_stats": variables.get("batch_stats", {})})
        owner = {id(leaf): path for path, leaf in statistics.items()}

        def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
                for leaf in context.module.variables["batch_stats"].values():
                    counts[owner[id(leaf)]] = math.prod(args[0].shape[:-1])
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            block_lib.run(block, variables, carry, batch, jax.random.key(0), train=True, dtype=jnp.float64)

    jax.eval_shape(trace, variables, carry)
    return counts


def running_after(path: reference.Path, x: np.ndarray, count: int) -> np.ndarray:
    """Flax's running statistic after one step, in PyTorch's convention.

    Both average with weight 0.1, but Flax averages the biased variance of the batch
    and PyTorch the unbiased one. The reference starts from variance 1.
    """
    if path[-1] != "var":
        return x
    kept = 1 - MOMENTUM
    return kept + (x - kept) * count / (count - 1)


def compare(golden: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one step and compares it with a golden file.

    Returns:
      Worst relative error of losses, logits, gradients (norm and probe) and running
      statistics (likewise), and the number of tensors compared.

    Raises:
      UserError: if the tensors of the file and of the network are not the same.
    """
    built = build(golden)
    example = Batch(built.batch.image[:1], built.batch.label[:1])
    state = init_state(built.blocks, built.feed, optax.identity(), jax.random.key(0), example)
    local_gradients = jax.jit(block_lib.gradients, static_argnames=("block", "dtype"))
    losses, gradients, running = [], {}, {}
    carry, out, key = None, None, jax.random.key(0)
    for i, (block, block_state, first) in enumerate(zip(built.blocks, state.blocks, built.first_units, strict=True)):
        carry = built.feed(i, carry, built.batch, key, train=True)
        names = dict(
            reference.reference_names(
                block, block_state.variables, first, built.per_stage, is_last=block is built.blocks[-1]
            )
        )
        variables = _filled(block_state.variables, names, golden["state_shapes"])
        counts = batch_norm_counts(block, variables, carry, built.batch)
        gradient, carry, out = local_gradients(block, variables, carry, built.batch, key, dtype=jnp.float64)
        losses.append(float(out.loss))
        for path, x in traverse_util.flatten_dict({"params": gradient}).items():
            gradients[names[path]] = reference.to_reference(path, np.asarray(x), variables)
        for path, x in traverse_util.flatten_dict(dict(out.mutated)).items():
            running[names[path]] = running_after(path, np.asarray(x), counts[path])

    compared = gradients.keys() | running.keys()
    if missing := golden["state_shapes"].keys() ^ compared:
        raise UserError(f"{len(missing)} tensors stand on one side only, among them {sorted(missing)[:3]}")
    expected_losses = [*(entry["ce"] for entry in golden["local_losses"]), golden["final_loss"]]
    assert out is not None
    logits = np.asarray(golden["logits"])
    return {
        "losses": float(np.max(np.abs(np.divide(losses, expected_losses) - 1))),
        "logits": float(np.max(np.abs(out.logits - logits)) / np.max(np.abs(logits))),
        "gradients": _worst_probe(gradients, golden["grads"]),
        "running_statistics": _worst_probe(running, golden["running_after"]),
        "tensors": len(compared),
    }


def _filled(variables: Variables, names: Mapping[Any, str], shapes: Mapping[str, Sequence[int]]) -> Variables:
    """Every tensor replaced by the value that its reference name stands for."""
    filled = {}
    for path, x in traverse_util.flatten_dict(dict(variables)).items():
        name, shape = names[path], reference.reference_shape(path, x.shape, variables)
        if tuple(shapes.get(name, ())) != shape:
            raise UserError(f"tensor {name} has shape {shapes.get(name)} in the file and {list(shape)} here")
        filled[path] = jnp.asarray(reference.from_reference(path, reference.value(name, shape), variables))
    return traverse_util.unflatten_dict(filled)


def _worst_probe(ours: Mapping[str, np.ndarray], theirs: Mapping[str, Mapping[str, Any]]) -> float:
    """Errors of norm and probe, relative to the tensor's norm."""
    if missing := ours.keys() ^ theirs.keys():
        raise UserError(f"{len(missing)} tensors stand on one side only, among them {sorted(missing)[:3]}")
    floor = NOISE_FLOOR * max((entry["norm"] for entry in theirs.values()), default=0.0)
    errors = [
        abs(got[quantity] - theirs[name][quantity]) / max(theirs[name]["norm"], floor)
        for name, x in ours.items()
        for got in (reference.probe(name, x),)
        for quantity in ("norm", "probe")
    ]
    return max(errors, default=0.0)


def main(argv: Sequence[str]) -> int:
    """Compares each golden file."""
    del argv
    if not _GOLDEN.value:
        raise UserError("no golden file given: use --golden=FILE.json")
    ok = True
    for name in _GOLDEN.value:
        try:
            golden = json.loads(Path(name).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"golden file {name}: {error}") from error
        with user_input(f"golden file {name}"):
            try:
                result = compare(golden)
            except KeyError as error:
                raise ValueError(f"has no field {error}") from error
        passed = all(error < TOLERANCE for key, error in result.items() if key != "tensors")
        ok &= passed
        print(json.dumps({"file": name, "ok": passed, **result}))
    return 0 if ok else 1


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    run(main)
