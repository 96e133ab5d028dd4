"""A network before anything is trained: units, cuts, heads, and what each block takes."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.cost.compiled import BlockCost, block_costs
from experiments.drawing.tables import aligned
from experiments.recipe.experiment import Experiment
from jaxlocal import block as block_lib
from jaxlocal.block import Block
from jaxlocal.executors import MIB
from jaxlocal.heads import Units
from jaxlocal.layers import Biased
from jaxlocal.network import kind_of
from jaxlocal.objective import Batch, Carry
from jaxlocal.rules.auglocal import select_units
from jaxlocal.rules.man import MomentumAuxiliary
from jaxlocal.scores import Scores
from jaxlocal.variables import RUNNING, Variables, pick, size


class Part(NamedTuple):
    """A unit, or a layer of a head.

    Attributes:
      kind: its type, and of a copy which unit it is one of.
      output: its shape, without the batch.
      parameters: running statistics are not counted; None where they are counted elsewhere.
    """

    kind: str
    output: str
    parameters: int | None = None


class Shown(NamedTuple):
    """A block.

    Attributes:
      first: index of its first unit.
      units: in the order of computation.
      heads: the modules that its objective reads the output by, each as a chain of layers.
      head_parameters: of all of them.
      cost: of its update.
    """

    first: int
    units: tuple[Part, ...]
    heads: tuple[tuple[Part, ...], ...]
    head_parameters: int
    cost: BlockCost


def blocks_of(experiment: Experiment) -> tuple[Shown, ...]:
    """Every block of a network."""
    state = jax.eval_shape(experiment.init)
    counts = experiment.describe(state)["parameters"]
    if len(experiment.seeds) > 1:  # the first of them
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
    batch = experiment.dataset.example(experiment.config.batch_size)
    found: list[Shown] = []
    carry: Carry = None
    costs = block_costs(experiment)
    for i, (block, cost) in enumerate(zip(experiment.blocks, costs, strict=True)):
        carry = jax.eval_shape(functools.partial(experiment.feed, i, train=True), carry, batch, state.key)
        variables = state.blocks[i].variables
        units = []
        for j, unit in enumerate(block.units):
            alone = block_lib.Block((unit,), block.objective)
            own = pick(variables, f"unit_{j}")
            nested = {collection: {"unit_0": tree} for collection, tree in own.items()}
            carry, _ = jax.eval_shape(functools.partial(block_lib.forward, alone, train=True), nested, carry, state.key)
            parameters = size([tree for collection, tree in own.items() if collection != RUNNING])
            units.append(Part(kind_of(unit), _shape(carry), parameters))
        first = found[-1].first + len(found[-1].units) if found else 0
        last, total = first + len(units) - 1, len(experiment.network.units)
        heads = _heads(block, variables, carry, batch, state.key, last, total)
        found.append(Shown(first, tuple(units), heads, counts[i]["head"], cost))
    return tuple(found)


def _shape(carry: Carry) -> str:
    """Without the batch; several arrays are only counted, but for scores that are not multiplied out."""
    leaves = jax.tree.leaves(jax.eval_shape(carry.whole) if isinstance(carry, Scores) else carry)
    return "x".join(map(str, leaves[0].shape[1:])) or "1" if len(leaves) == 1 else f"{len(leaves)} arrays"


def _heads(
    block: Block, variables: Variables, carry: Carry, batch: Batch, key: Any, last: int, num_units: int
) -> tuple[tuple[Part, ...], ...]:
    """The modules that an objective calls, each as the chain of those that it calls itself."""
    chains: list[tuple[nn.Module, list[tuple[nn.Module, str]]]] = []
    depth = 0

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal depth
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if depth == 0:
            chains.append((context.module, []))
        depth += 1
        try:
            output = call(*args, **kwargs)
        finally:
            depth -= 1
        if depth == 1:
            chains[-1][1].append((context.module, _shape(output)))
        return output

    with nn.intercept_methods(record):
        jax.eval_shape(
            lambda variables, *args: block.objective.apply(block_lib.head_of(block, variables), *args, train=True),
            *(variables, carry, batch, key),
        )
    heads = []
    for module, layers in chains:
        if isinstance(module, MomentumAuxiliary):  # what follows reads it, so it stands one unit further on
            last += 1
            names = ([f"bias: unit {last}"] if module.bias else []) + ([f"average: unit {last}"] if module.ema else [])
        else:
            names = [type(layer.layer if isinstance(layer, Biased) else layer).__name__ for layer, _ in layers]
            if isinstance(module, Units):  # copies of later units
                for j, unit in enumerate(select_units(last, num_units, len(module.units))):
                    names[j] += f" of unit {unit}"
        parts = (Part(name, shape) for name, (_, shape) in zip(names, layers, strict=True))
        heads.append(tuple(part for part in parts if part.kind not in ("BatchNorm", "Dropout")))
    return tuple(filter(None, heads))


def table(blocks: Sequence[Shown]) -> str:
    """A line for each unit; what belongs to a block stands at its last unit."""
    rows: list[Sequence[str]] = [
        ("block", "unit", "kind", "output", "parameters", "in head", "MFLOP / example", "in head", "temporaries MiB")
    ]
    for i, block in enumerate(blocks):
        for j, unit in enumerate(block.units):
            numbers: Sequence[str] = ("", "", "", "")
            if j == len(block.units) - 1:
                flops = (f"{x / 1e6:,.2f}" for x in (block.cost.units, block.cost.head))
                numbers = (f"{block.head_parameters:,}", *flops, f"{block.cost.temporaries / MIB:,.1f}")
            where = ("" if j else str(i), str(block.first + j))
            rows.append((*where, unit.kind, unit.output, f"{unit.parameters:,}", *numbers))
    return aligned(rows)


def heads_of(blocks: Sequence[Shown]) -> str:
    """A line for each block: the layers of its head."""
    lines = []
    for i, block in enumerate(blocks):
        chains = (" -> ".join(f"{part.kind} [{part.output}]" for part in chain) for chain in block.heads)
        lines.append(f"block {i} ends in {'; '.join(chains) or 'no head'}")
    return "\n".join(lines)


def draw(blocks: Sequence[Shown]) -> Figure:
    """From top to bottom: a row for each unit, heads beside the block that they end, bars of what a block takes.

    An arrow beside each block goes the way of its gradient.
    """
    rows = sum(len(block.units) for block in blocks)
    chains = [chain for block in blocks for chain in block.heads]
    longest = max((len(chain) for chain in chains), default=1)
    crowd = max(1.0, max(0.6 * len(block.heads) / len(block.units) for block in blocks))  # heads in a row's height
    x_heads, x_bars = 3.0, 3.4 + 2.1 * longest
    figure = Figure(figsize=(0.62 * (x_bars + 7.1), 0.42 * crowd * rows + 1.2), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-0.5, x_bars + 7.4), ylim=(rows + 0.3, -1.1))
    ax.axis("off")
    bars: Sequence[tuple[str, Sequence[tuple[float, ...]], float, str]] = (
        (
            "parameters",
            [(sum(unit.parameters or 0 for unit in b.units), b.head_parameters) for b in blocks],
            1.0,
            ",.0f",
        ),
        ("MFLOP / example", [(b.cost.units, b.cost.head) for b in blocks], 1e6, ",.1f"),
        ("temporaries, MiB", [(b.cost.temporaries,) for b in blocks], MIB, ",.1f"),
    )
    top = 0
    for title, x in (("units", 1.2), ("heads", x_heads + 0.9)):
        ax.text(x, -0.55, title, ha="center", fontsize=9, weight="bold")
    for k, (title, _, _, _) in enumerate(bars):
        ax.text(x_bars + 2.4 * k, -0.55, title, ha="left", fontsize=9, weight="bold")
    for i, block in enumerate(blocks):
        middle, bottom = top + len(block.units) / 2, top + len(block.units)
        for j, unit in enumerate(block.units):
            _box(ax, 0, top + j, 2.4, f"{block.first + j}  {unit.kind} [{unit.output}]", "#cfe0f3")
        back = {"arrowstyle": "->", "color": "#c0392b", "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (-0.25, top + 0.08), (-0.25, bottom - 0.08), arrowprops=back)
        height = len(block.units) / max(1, len(block.heads))
        gap = "\n" if height * crowd >= 0.8 else " "
        for c, chain in enumerate(block.heads):
            y = bottom - 1 if len(block.heads) == 1 else top + height * (c + 0.5) - min(0.5, height / 2)
            if c == len(block.heads) - 1:
                ax.annotate(
                    "", (x_heads, bottom - 0.5), (2.4, bottom - 0.5), arrowprops={"arrowstyle": "->", "lw": 0.8}
                )
            for j, part in enumerate(chain):
                _box(ax, x_heads + 2.1 * j, y, 2.0, f"{part.kind}{gap}[{part.output}]", "#f6dfc5", min(1.0, height))
        for k, (_, values, unit_of, form) in enumerate(bars):
            most = max(sum(pair) for pair in values) or 1
            left = x_bars + 2.4 * k
            colours = ("0.65",) if len(values[i]) == 1 else ("#6f9bd1", "#e0a25b")
            for part_of, colour in zip(values[i], colours, strict=True):
                ax.barh(middle, part_of / most, 0.5, left, color=colour)
                left += part_of / most
            ax.text(left + 0.05, middle, format(sum(values[i]) / unit_of, form), va="center", fontsize=7)
        if i:
            ax.plot([-0.5, x_bars + 7.2], [top, top], color="#c0392b", linestyle="--", linewidth=0.9)
        top = bottom
    legend = "blue: units, orange: heads, red arrows: gradients, dashed: cuts, which no gradient crosses"
    ax.text(0, rows + 0.15, legend, fontsize=7, va="top", color="0.35")
    return figure


def _box(ax: Any, x: float, y: float, width: float, text: str, colour: str, height: float = 1.0) -> None:
    ax.add_patch(Rectangle((x, y + 0.08 * height), width, 0.84 * height, facecolor=colour, edgecolor="0.4", lw=0.6))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=6.5 if height >= 0.8 else 5.5)
