"""Cuts that fit a memory budget: candidates are built and compiled as in training, until one fits."""

import inspect
import math
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from experiments.app.calls import called, innermost, parse_call
from experiments.app.errors import UserError, user_input
from experiments.cost.compiled import Measured, lowered_flops, measure, unit_costs
from experiments.cost.cutter import Cutter
from experiments.recipe.build import build, changed, rebuilt
from experiments.recipe.experiment import Experiment
from experiments.recipe.fields import parse_memory
from experiments.recipe.registry import RULES, make_rule, named
from jaxlocal import data
from jaxlocal.executors import MIB


class DoesNotFitError(UserError):
    """No cuts make the step fit the budget.

    Attributes:
      least: the smallest step that was found.
    """

    def __init__(self, least: Measured, budget: int) -> None:
        self.least = least
        config = least.experiment.config
        super().__init__(
            f"no cuts make {called(config.rule)} fit {budget / MIB:,.1f} MiB at batch size {config.batch_size}: the "
            f"smallest step found takes {least.cost.total / MIB:,.1f} MiB, in {least.blocks} by "
            f"{config.executor}; remat may take less, and so does a smaller batch with accumulate"
        )


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
    whole, cutter = cutter_of(config, dataset)
    costs = [unit.temporaries for unit in unit_costs(whole, cutter)]
    smallest: list[Measured] = []

    ratio = 0.7  # of the temporaries under the second executor to those under the first, until it is known

    def best(num_blocks: int) -> Measured:
        """With so many blocks, the first executor that fits, else the one of least memory."""
        nonlocal ratio
        with user_input(f"rule {config.rule.name}"):
            cuts = ",".join(map(str, cutter.cut(costs, num_blocks))) or "even:1"
        found: list[Measured] = []
        for executor in executors:
            found.append(measure(build(changed(config, cuts=cuts, executor=executor), dataset)))
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


def with_remat(plan: Measured, budget: int, executors: Sequence[str]) -> tuple[Measured, ...]:
    """The plan of the same rule with remat inside its blocks; none unless it takes fewer blocks, and several."""
    rule = plan.experiment.config.rule
    if not plan.cuts or "remat" in called(rule):
        return ()
    config = changed(plan.experiment.config, rule={"name": "remat", "rule": rule.to_dict()})
    try:
        other = search(config, plan.experiment.dataset, budget, executors)
    except DoesNotFitError:
        return ()
    return (other,) if 0 < len(other.cuts) < len(plan.cuts) else ()


def settled(
    config: ConfigDict,
    *,
    dataset: data.Input | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Experiment:
    """A config, built; if its cuts are ``auto:SIZE``, with the fewest that fit.

    So ``build``, whose arguments these are, and what a run records know definite cuts alone. ``say`` is told of each
    candidate.

    Raises:
      UserError: if anything in the config is wrong, or no cuts fit.
    """
    if not str(config.get("cuts", "")).startswith("auto:"):
        return build(config, dataset)
    budget = parse_memory(config.cuts.removeprefix("auto:"), "cuts=auto:")
    dataset = build(in_one_block(config), dataset).dataset
    return search(config, dataset, budget, (config.executor,), say).experiment


def in_one_block(config: ConfigDict, rule: str = "backprop") -> ConfigDict:
    """The same config under a rule that has one block."""
    return changed(config, cuts="even:1", executor="fused", stages=0, rule=parse_call(rule, "rule"))


def cutter_of(config: ConfigDict, dataset: data.Input) -> tuple[Experiment, Cutter]:
    """The config's network in one block, and what cuts it for the config's rule.

    Raises:
      UserError: if network and rule do not go together, or the rule moves the cuts.
    """
    whole = build(in_one_block(config), dataset)
    rule = make_rule(config.rule)
    with user_input(f"rule {config.rule.name}"):
        return whole, Cutter(whole.network.units, rule, whole.task)


def widened(experiment: Experiment, flops: float) -> Experiment:
    """The experiment at the head width whose step takes ``flops`` per example; as it is, if its rule has no width.

    Widths go by steps of 1% and features are whole numbers, so the computation agrees to a few percent.

    Raises:
      UserError: if no width from 1/16 to 64 takes so many.
    """
    rule = experiment.config.rule.to_dict()
    leaf = innermost(rule)
    if "width" not in inspect.signature(named("rule", RULES, leaf["name"])).parameters:
        return experiment
    if abs(lowered_flops(experiment) / flops - 1) < 0.005:
        return experiment  # it takes as many already

    def excess(width: float) -> float:
        leaf["width"] = width
        return lowered_flops(rebuilt(experiment, rule=rule)) - flops

    narrow, wide = 1 / 16, 64.0
    if excess(narrow) > 0 or excess(wide) < 0:
        raise UserError(
            f"rule {leaf['name']}: no width from {narrow} to {wide} takes {flops / 1e6:.1f} MFLOP an example"
        )
    while wide / narrow > 1.01:
        middle = math.sqrt(narrow * wide)
        narrow, wide = (middle, wide) if excess(middle) < 0 else (narrow, middle)
    leaf["width"] = round(wide, 3)
    return rebuilt(experiment, rule=rule)


def _total(measured: Measured) -> int:
    return measured.cost.total
