"""Does this code compute what the authors' code computes? The answer for one golden file."""

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from experiments.app.errors import UserError
from experiments.reference import names as reference
from experiments.reference.golden import build, shapes_of
from jaxlocal import block as block_lib
from jaxlocal.block import Block, BlockState
from jaxlocal.executors import fused
from jaxlocal.layers import BatchNorm
from jaxlocal.objective import Batch, Carry
from jaxlocal.variables import Variables

TOLERANCE = 1e-6
MOMENTUM = 0.1  # PyTorch's: the weight of the new statistic

# A tensor whose gradient is zero in exact arithmetic (a bias before batch norm) has rounding
# noise for a reference: its error counts relative to this much of the file's largest norm.
NOISE_FLOOR = 1e-8

# What a rule calls a loss term, and what the files do.
TERMS = {"similarity": "extra", "reconstruction": "extra", "prediction": "ce", "label": "ce", "loss": "ce"}


def batch_norm_counts(block: Block, variables: Variables, carry: Carry, batch: Batch) -> dict[reference.Path, int]:
    """How many values each running statistic of a block averages over, by its path."""
    counts: dict[reference.Path, int] = {}

    def trace(variables: Variables, carry: Carry) -> None:
        statistics = traverse_util.flatten_dict({"batch_stats": variables.get("batch_stats", {})})
        owner = {id(leaf): path for path, leaf in statistics.items()}

        def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
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


def expected_losses(golden: Mapping[str, Any]) -> list[float]:
    """Every unweighted loss term, block by block, the auxiliary one before the label's."""
    losses = []
    for entry in golden["local_losses"]:
        if isinstance(entry, float):
            losses.append(entry)
            continue
        values = {name: x for name, x in entry.items() if isinstance(x, float)}
        if set(values) == {"ce", "extra"} and golden["rule"] not in ("PredSim", "InfoPro"):
            del values["extra"]  # recorded as zero where the rule has none
        losses += [values[name] for name in sorted(values, key=lambda name: name == "ce")]
    return [*losses, golden["final_loss"]]


def compare(golden: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one step and compares it with a golden file.

    Returns:
      Worst relative error of losses, logits, gradients (norm and probe), running
      statistics and moving averages (likewise), and the number of tensors compared.

    Raises:
      UserError: if the tensors of the file and of the network are not the same.
    """
    built = build(golden)
    example = jax.tree.map(lambda x: x[:1], built.batch)
    state = fused(built.blocks, built.feed, optax.identity()).init(jax.random.key(0), example)
    local_gradients = jax.jit(block_lib.gradients, static_argnames=("block", "dtype"))
    names = [
        dict(built.layout.names(block_state.variables, i, first, len(block.units), is_last=i == len(built.blocks) - 1))
        for i, (block, block_state, first) in enumerate(zip(built.blocks, state.blocks, built.first_units, strict=True))
    ]
    filled = [_filled(s.variables, table, shapes_of(golden)) for s, table in zip(state.blocks, names, strict=True)]
    losses, gradients, running, averages = [], {}, {}, {}
    carry, out, key = None, None, jax.random.key(0)
    for i, (block, variables, table) in enumerate(zip(built.blocks, filled, names, strict=True)):
        carry = built.feed(i, carry, built.batch, key, train=True)
        counts = batch_norm_counts(block, variables, carry, built.batch)
        gradient, carry, out = local_gradients(block, variables, carry, built.batch, key, dtype=jnp.float64)
        terms = [name for name in TERMS if name in out.metrics] or ["loss"]
        losses += [float(block_lib.metrics_of(out)[name]) for name in terms]
        for path, x in traverse_util.flatten_dict({"params": gradient}).items():
            gradients[table[path]] = reference.to_reference(np.asarray(x), path)
        for path, x in traverse_util.flatten_dict(dict(out.mutated)).items():
            running[table[path]] = running_after(path, np.asarray(x), counts[path])
        peer = filled[min(i + 1, len(filled) - 1)]  # the last block looks at none
        synced = block_lib.sync(block, BlockState(variables, ()), block_lib.params_of(BlockState(peer, ()))).variables
        for path, x in traverse_util.flatten_dict({"ema": synced.get("ema", {})}).items():
            averages[table[path]] = reference.to_reference(np.asarray(x))
    assert out is not None
    logits = np.asarray(golden["logits"])
    ours = np.asarray(out.logits)
    if ours.ndim == 3:  # of a text, some of the first example's
        ours = ours[0, : len(logits), : len(logits[0])]
    result = {
        "losses": float(np.max(np.abs(np.divide(losses, expected_losses(golden)) - 1))),
        "logits": float(np.max(np.abs(ours - logits)) / np.max(np.abs(logits))),
        "gradients": _worst_probe(gradients, golden["grads"]),
    }
    if "running_after" in golden:
        result["running_statistics"] = _worst_probe(running, golden["running_after"])
    else:
        running = {}  # MAN's files hold none
    if averages or "ema_after" in golden:
        result["averages"] = max(
            _worst_probe(averages, golden["ema_after"]), _worst_move(averages, golden["ema_after"])
        )
    compared = gradients.keys() | averages.keys() | running.keys()
    if "state_shapes" in golden:
        _same_names(golden["state_shapes"].keys(), compared)
    return {**result, "tensors": len(compared)}


def _same_names(theirs: Set[str], ours: Set[str]) -> None:
    if missing := theirs ^ ours:
        raise UserError(f"{len(missing)} tensors stand on one side only, among them {sorted(missing)[:3]}")


def _filled(variables: Variables, names: Mapping[Any, str], shapes: Mapping[str, Sequence[int]]) -> Variables:
    """Every tensor replaced by the value that its reference name stands for."""
    filled = {}
    for path, x in traverse_util.flatten_dict(dict(variables)).items():
        name, shape = names[path], reference.to_reference(np.empty(x.shape, np.bool_), path).shape
        listed = path[0] != "batch_stats" or name in shapes  # MAN's files list no running statistics
        if listed and list(shapes.get(name, ("none",))) != list(shape):
            raise UserError(f"tensor {name} has shape {shapes.get(name)} in the file and {list(shape)} here")
        filled[path] = jnp.asarray(reference.from_reference(reference.value(name, shape), path))
    return traverse_util.unflatten_dict(filled)


def _worst_probe(ours: Mapping[str, np.ndarray], theirs: Mapping[str, Mapping[str, Any]]) -> float:
    """Errors of norm and probe, relative to the tensor's norm."""
    _same_names(theirs.keys(), ours.keys())
    floor = NOISE_FLOOR * max((entry["norm"] for entry in theirs.values()), default=0.0)
    errors = [
        abs(got[quantity] - theirs[name][quantity]) / max(theirs[name]["norm"], floor)
        for name, x in ours.items()
        for got in (reference.probe(name, x),)
        for quantity in ("norm", "probe")
    ]
    return max(errors, default=0.0)


def _worst_move(ours: Mapping[str, np.ndarray], theirs: Mapping[str, Mapping[str, Any]]) -> float:
    """Errors of how far each average has moved from where it began, relative to that."""
    moved = {name: float(np.linalg.norm(x - reference.value(name, x.shape))) for name, x in ours.items()}
    return max((abs(x / theirs[name]["moved"] - 1) for name, x in moved.items()), default=0.0)
