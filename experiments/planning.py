"""Cuts that fit a memory budget: candidates are built and compiled as in training, until one fits."""

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments.build import DTYPES, Experiment, build, parse_memory
from experiments.cli import UserError, user_input
from experiments.cost import MIB, Cost, examples_of_a_device, of_programs, resident_bytes
from experiments.registry import MODELS, make, make_rule, parse_calls
from experiments.workdir import holds_run, load_config
from jaxlocal import data
from jaxlocal.block import Block
from jaxlocal.executors import Program, streamed
from jaxlocal.feed import chain
from jaxlocal.network import Network, cheapest_cuts, cut_everywhere
from jaxlocal.objective import Batch, Carry, ObjectiveOut, headless, no_sync
from jaxlocal.rule import output
from jaxlocal.task import Task
from jaxlocal.variables import Key, Variables, abstract, nbytes


class Measured(NamedTuple):
    """A config, and what its step takes.

    Attributes:
      config: with its cuts and executor.
      cuts: that the rule left of them.
      cost: of the step's own programs, compiled.
      largest: the program at whose run most memory is taken.
      data: bytes of the training split.
      state: bytes of all blocks.
    """

    config: ConfigDict
    cuts: tuple[int, ...]
    cost: Cost
    largest: Program
    data: int
    state: int

    @property
    def blocks(self) -> str:
        """How many there are, in words."""
        return f"{len(self.cuts) + 1} block{'s' if self.cuts else ''}"


class DoesNotFitError(UserError):
    """No cuts make the step fit the budget.

    Attributes:
      least: the smallest step that was found.
    """

    def __init__(self, least: Measured, budget: int) -> None:
        self.least = least
        config = least.config
        super().__init__(
            f"no cuts make {called(config.rule)} fit {budget / MIB:,.1f} MiB at batch size {config.batch_size}: the "
            f"smallest step found takes {least.cost.total / MIB:,.1f} MiB, in {least.blocks} by "
            f"{config.executor}; remat may take less, and so does a smaller batch with accumulate"
        )


class UnitCost(NamedTuple):
    """A unit as a block of its own, with its head.

    Attributes:
      kind: the unit's type.
      output: its shape, without the batch.
      temporaries: bytes.
      unit: floating-point operations per example, of the update without the head.
      head: likewise, of the head.
    """

    kind: str
    output: tuple[int, ...]
    temporaries: int
    unit: float
    head: float


class BlockCost(NamedTuple):
    """A block's update as a program of its own.

    Attributes:
      temporaries: bytes.
      units: floating-point operations per example, of the update without the head.
      head: likewise, of the head.
    """

    temporaries: int
    units: float
    head: float


class Cutter:
    """The cuts to give to a rule, so that so many balanced blocks are left.

    Of cuts everywhere a rule keeps the first so many and drops the tail: none (DGL), the last few
    (AugLocal), or all (backprop). The tail is given after the cuts that are wanted.

    A block is reckoned to take what its dearest unit does, and a share of what the others do: what a unit
    alone takes is more than it adds to a block. The share follows from what was measured last.
    """

    def __init__(self, config: ConfigDict, task: Task) -> None:
        self.units = make("model", MODELS, config.model)
        self._rule = make_rule(config.rule)
        self._task = task
        everywhere = cut_everywhere(self.units)
        with user_input("cuts and rule"):
            kept, local_rule = self._rule(Network(self.units, everywhere), self._task)
        self.most = len(kept.cuts) + 1
        if kept.cuts != everywhere[: self.most - 1]:
            raise UserError(f"rule {config.rule.name} moves the cuts: no plan can be made, give the cuts yourself")
        self.tail = everywhere[self.most - 1 :]
        self.fewest = next((k for k in range(1, self.most) if self._keeps(everywhere[: k - 1])), self.most)
        self.remat = local_rule.remat
        self.heads = (*local_rule.objectives[:-1], *[output(Network(self.units), task)] * (len(self.tail) + 1))
        self._costs: Sequence[float] = [1.0] * len(self.units)
        self._share = 1.0

    def cut(self, costs: Sequence[float], num_blocks: int) -> tuple[int, ...]:
        """The cuts to give for ``num_blocks`` blocks, the dearest as cheap as possible.

        Raises:
          UserError: if the rule does not keep those of them that it should.
        """
        self._costs = costs
        ends = (*range(1, self.most), len(costs))  # the tail goes with the last block
        wanted = cheapest_cuts(ends, self._cost, num_blocks)
        if not self._keeps(wanted):
            raise UserError(f"no cuts were found of which the rule keeps {wanted}: give the cuts yourself")
        return (*wanted, *self.tail)

    def correct(self, cuts: Sequence[int], measured: float) -> None:
        """Learns what the dearest block between these cuts takes."""
        blocks = [self._costs[a:b] for a, b in pairwise((0, *cuts, len(self._costs)))]
        shares = [(measured - max(block)) / (sum(block) - max(block)) for block in blocks if sum(block) > max(block)]
        self._share = min(1.0, max(0.0, min(shares, default=1.0)))

    def _cost(self, first: int, end: int) -> float:
        dearest, together = max(self._costs[first:end]), sum(self._costs[first:end])
        return dearest + self._share * (together - dearest)

    def _keeps(self, wanted: tuple[int, ...]) -> bool:
        try:
            kept, _ = self._rule(Network(self.units, (*wanted, *self.tail)), self._task)
        except ValueError:
            return False
        return kept.cuts == wanted


def search(
    config: ConfigDict,
    dataset: data.Input,
    budget: int,
    executors: Sequence[str],
    say: Callable[[str], None] = lambda _: None,
) -> Measured:
    """The fewest blocks whose step fits; of as many, the first executor's.

    Args:
      config: whose cuts and executor are to be found.
      dataset: the one that the config names.
      budget: bytes on the device.
      executors: that may be used, cheapest first.
      say: is told of each candidate.

    Raises:
      DoesNotFitError: if none fits.
    """
    cutter = Cutter(config, dataset.task)
    costs = [unit.temporaries for unit in unit_costs(config, dataset)]
    smallest: list[Measured] = []

    ratio = 0.7  # of the temporaries under the second executor to those under the first, until it is known

    def best(num_blocks: int) -> Measured:
        """With so many blocks, the first executor that fits, else the one of least memory."""
        nonlocal ratio
        cuts, found = cutter.cut(costs, num_blocks), []
        for executor in executors:
            found.append(measure(changed(config, written(cuts), executor), dataset))
            say(f"{found[-1].blocks}, {executor}: {_total(found[-1]) / MIB:,.1f} MiB")
            first = found[0]  # the least that another could take: no state, and its share of the temporaries
            least = _total(first) - first.state - (1 - ratio) * first.cost.temporaries
            if _total(found[-1]) <= budget or least > budget:
                break
        if len(found) > 1:
            ratio = min(1.0, found[1].cost.temporaries / found[0].cost.temporaries)
        cutter.correct(found[0].cuts, found[0].cost.temporaries)
        smallest.append(min(found, key=_total))
        return smallest[-1]

    fails, num_blocks, before = cutter.fewest - 1, cutter.fewest, math.inf
    while (total := _total(fitting := best(num_blocks))) > budget:
        if num_blocks == cutter.most:
            raise DoesNotFitError(min(smallest, key=_total), budget)
        more = math.ceil(num_blocks * total / budget) if total < before else cutter.most  # more help no more: the end
        fails, num_blocks, before = num_blocks, min(cutter.most, max(num_blocks + 1, more)), total
    while num_blocks - fails > 1:
        middle = (fails + num_blocks) // 2
        if _total(candidate := best(middle)) <= budget:
            num_blocks, fitting = middle, candidate
        else:
            fails = middle
    return fitting


def with_remat(plan: Measured, dataset: data.Input, budget: int, executors: Sequence[str]) -> tuple[Measured, ...]:
    """The plan of the same rule with remat inside its blocks; none unless it takes fewer blocks, and several."""
    if not plan.cuts or "remat" in called(plan.config.rule):
        return ()
    config = plan.config.copy_and_resolve_references()
    config.rule = ConfigDict({"name": "remat", "rule": config.rule})
    try:
        other = search(config, dataset, budget, executors)
    except DoesNotFitError:
        return ()
    return (other,) if 0 < len(other.cuts) < len(plan.cuts) else ()


def settled(
    config: ConfigDict, workdir: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> ConfigDict:
    """The config itself; or, if its cuts are ``auto:SIZE``, with the fewest that fit.

    So ``build``, and what a run records, know definite cuts alone.

    Args:
      config: as :mod:`experiments.configs` makes them.
      workdir: if it holds a run already, that run's cuts are taken.
      say: is told of each candidate.

    Raises:
      UserError: if anything in the config is wrong, or no cuts fit.
    """
    if not str(config.get("cuts", "")).startswith("auto:"):
        return config
    budget = parse_memory(config.cuts.removeprefix("auto:"), "cuts=auto:")
    if workdir and holds_run(workdir):
        return changed(config, load_config(workdir).cuts, config.executor)
    return search(config, build(in_one_block(config), None).dataset, budget, (config.executor,), say).config


def in_one_block(config: ConfigDict, rule: str = "backprop") -> ConfigDict:
    """The same config under a rule that has one block."""
    other = changed(config, "even:1", "fused")
    other.rule, other.stages = ConfigDict(parse_calls(rule, "rule")[rule]), 0
    return other


def called(rule: ConfigDict) -> str:
    """A rule's name, and those of the rules in it: ``remat(auglocal)``."""
    return f"{rule.name}({called(rule.rule)})" if "rule" in rule else rule.name


def changed(config: ConfigDict, cuts: str, executor: str) -> ConfigDict:
    """A copy with other cuts and executor."""
    copy = config.copy_and_resolve_references()
    copy.cuts, copy.executor = cuts, executor
    return copy


def written(cuts: Sequence[int]) -> str:
    """Cuts as a config has them."""
    return ",".join(map(str, cuts)) or "even:1"


def measure(config: ConfigDict, dataset: data.Input) -> Measured:
    """Compiles the programs of a config's step, from abstract values alone."""
    experiment = build(config, dataset)
    state = jax.eval_shape(lambda: experiment.init(config))
    batch = experiment.abstract_batch(config)
    resident = resident_bytes(experiment, batch)
    programs = experiment.executor.programs(state, batch)
    costs = [_compiled(program) for program in programs]
    ahead = dataset.ahead * (nbytes(batch) - resident) // len(experiment.placement.devices)
    totals = [ahead + program.resident + cost.total for program, cost in zip(programs, costs, strict=True)]
    flops = sum(program.times * cost.flops for program, cost in zip(programs, costs, strict=True))
    return Measured(
        config=config,
        cuts=experiment.network.cuts,
        cost=Cost(
            flops / examples_of_a_device(experiment, config),
            max(cost.temporaries for cost in costs),
            max(totals),
        ),
        largest=programs[totals.index(max(totals))],
        data=resident,
        state=nbytes(state.blocks),
    )


def unit_costs(config: ConfigDict, dataset: data.Input) -> tuple[UnitCost, ...]:
    """Each unit as a block of its own; units that the rule never ends a block with have a classifier for a head."""
    cutter = Cutter(config, dataset.task)
    b, dtype, optimizer = config.batch_size, DTYPES[config.dtype], optax.sgd(0.1)  # one, so that equals are traced once
    batch = dataset.example(b)
    carry: Carry = batch.input
    found: list[UnitCost] = []
    known: dict[Any, tuple[UnitCost, Carry]] = {}  # by structure: what it costs, and its output

    for unit, head in zip(cutter.units, cutter.heads, strict=True):
        block = Block((unit,), head._replace(sync=no_sync), cutter.remat)
        same = (block, carry.shape, carry.dtype)
        if same not in known:
            both_of = (block, block._replace(objective=_NO_HEAD))
            whole, bare = (_alone(x, carry, batch, dtype, optimizer) for x in both_of)
            both, own = (program.flops() / b for program in (whole, bare))
            out = abstract(whole.lowered.out_info[1])
            cost = UnitCost(type(unit).__name__, out.shape[1:], _compiled(whole).temporaries, own, both - own)
            known[same] = cost, out
        found.append(known[same][0])
        carry = known[same][1]
    return tuple(found)


def block_costs(experiment: Experiment, config: ConfigDict) -> tuple[BlockCost, ...]:
    """Each block of one seed as a program of its own, as the streamed executor compiles it; nothing is run.

    What a block looks at of the next one (MAN) is left out.
    """
    b, dtype = config.batch_size, DTYPES[config.dtype]
    batch, key = experiment.dataset.example(b), jax.random.key(0)
    found: list[BlockCost] = []
    carry: Carry = None
    for i, block in enumerate(experiment.blocks):
        feed = functools.partial(experiment.feed, i, train=True)
        carry = jax.eval_shape(feed, carry, batch, key)
        block = block._replace(objective=block.objective._replace(sync=no_sync))
        both_of = (block, block._replace(objective=_NO_HEAD))
        whole, bare = (_alone(x, carry, batch, dtype, experiment.optimizer) for x in both_of)
        both, own = (program.flops() / b for program in (whole, bare))
        found.append(BlockCost(_compiled(whole).temporaries, own, both - own))
        carry = whole.lowered.out_info[1]
    return tuple(found)


def _alone(block: Block, carry: Carry, batch: Any, dtype: Any, optimizer: optax.GradientTransformation) -> Program:
    """The update of a block as the first of a network, on inputs like ``carry``."""
    fed = batch._replace(input=carry)
    executor = streamed((block,), chain(), optimizer, dtype=dtype)
    return executor.programs(jax.eval_shape(executor.init, jax.random.key(0), fed), fed)[-1]


def _silent(variables: Variables, carry: Carry, batch: Batch, key: Key, *, train: bool) -> ObjectiveOut:
    del variables, batch, key, train
    floating = [x for x in jax.tree.leaves(carry) if jnp.issubdtype(x.dtype, jnp.floating)]
    return ObjectiveOut(sum((jnp.mean(x.astype(jnp.float32)) for x in floating), jnp.zeros(())), {}, {}, None)


_NO_HEAD = headless(_silent)
_known: dict[str, Cost] = {}


def _compiled(program: Program) -> Cost:
    """Of a program alone; ``total`` is what it takes beside what is resident. Equal programs are compiled once."""
    text = hashlib.sha256(program.lowered.as_text().encode()).hexdigest()
    if text not in _known:
        _known[text] = of_programs([program._replace(times=1, resident=0)], 1)
    return _known[text]


def _total(measured: Measured) -> int:
    return measured.cost.total
