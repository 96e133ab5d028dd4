"""Which rules ``experiments.compare`` trains, and under which cuts."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments.app.calls import innermost
from experiments.app.errors import UserError
from experiments.cost.search import settled
from experiments.recipe.build import changed
from experiments.recipe.experiment import Experiment


def combinations(config: ConfigDict, rules: Mapping[str, Mapping[str, Any]], cuts: str | None) -> dict[str, ConfigDict]:
    """What is trained, by name: the same recipe under each rule, and, where it has any, under each of the cuts.

    Raises:
      UserError: if some of the cuts are none, or are given twice.
    """
    if cuts is None:
        return {name: changed(config, rule=spec) for name, spec in rules.items()}
    each = [text.replace(" ", "") for text in cuts.split(";")]
    if not all(each) or len(set(each)) < len(each):
        raise UserError(f"--cuts={cuts}: write each once, with semicolons between, as 3;2,3,4")
    found: dict[str, ConfigDict] = {}
    for name, spec in rules.items():
        if innermost(spec)["name"] == "backprop":
            found[name] = changed(config, rule=spec)
        else:
            found |= {f"{name}@cuts={these}": changed(config, rule=spec, cuts=these) for these in each}
    return found


def settled_by(configs: Mapping[str, ConfigDict], *, over_cuts: bool = False) -> dict[str, Experiment]:
    """All of them built, on one data set.

    Args:
      configs: by name.
      over_cuts: whether a rule may be left out under some cuts, with a line: not under all, nor every rule.

    Raises:
      UserError: if one cannot be built.
    """
    experiments: dict[str, Experiment] = {}
    refused: dict[str, UserError] = {}
    for name, config in configs.items():
        dataset = next(iter(experiments.values())).dataset if experiments else None
        try:
            experiments[name] = settled(config, say=print, dataset=dataset)
        except UserError as error:
            if not over_cuts:
                raise
            refused[name] = error
    others = [configs[name] for name in experiments]
    for name, reason in refused.items():
        if not all(any(of[field] == configs[name][field] for of in others) for field in ("rule", "cuts")):
            raise UserError(f"{name}: {reason}") from reason
        print(f"left out: {name}: {reason}", flush=True)
    return experiments
