r"""Trains several rules under one recipe and puts them side by side.

.. code-block:: shell

    python -m experiments.compare --config=experiments/configs/auglocal_digits.py \\
        --rules=auglocal,backprop --workdir=/tmp/compare

The config's own rule keeps its parameters, the others take their defaults. Each rule
trains in ``workdir/RULE`` and goes on where it was if interrupted. The table goes to
the terminal and to ``table.md``, the learning curves to ``curves.png``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments.build import build
from experiments.cli import UserError, config_flag, one_of, run
from experiments.pictures import learning_curves
from experiments.record import percent
from experiments.registry import RULES
from experiments.training import Results, train_and_evaluate

_CONFIG = config_flag("The recipe: a file of experiments/configs.")
_RULES = flags.DEFINE_list("rules", ["auglocal", "backprop"], "Rules to train, by name.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs, the table and the picture go.")


def with_rule(config: ConfigDict, name: str) -> ConfigDict:
    """The same recipe under another rule."""
    changed = config.copy_and_resolve_references()
    if name != config.rule.name:
        changed.rule = ConfigDict({"name": name})
    return changed


def table(results: Mapping[str, Results]) -> str:
    """Test accuracy at each exit, and parameters, as a Markdown table."""
    exits = max(len(result.exits) for result in results.values())
    rows = [["rule", "blocks", "parameters", "in heads", *(f"exit {i + 1} %" for i in range(exits - 1)), "last exit %"]]
    for name, result in results.items():
        accuracy = [percent(block, 2) for block in result.exits]
        counts = [sum(p[part] for p in result.about["parameters"]) for part in ("network", "head")]
        empty = [""] * (exits - len(accuracy))
        rows.append(
            [name, str(len(accuracy)), *(f"{n:,}" for n in counts), *accuracy[:-1], *empty, f"**{accuracy[-1]}**"]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    rule_line = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([lines[0], rule_line, *lines[1:]])


def main(argv: Sequence[str]) -> int:
    """Trains each rule, then writes the table and the picture."""
    del argv
    config = _CONFIG()
    if not _WORKDIR.value:
        raise UserError("--workdir is needed: a directory for the run's files")
    if not _RULES.value or len(set(_RULES.value)) < len(_RULES.value):
        raise UserError(f"--rules={','.join(_RULES.value)}: name at least one rule, each once")
    configs = {name: with_rule(config, one_of("rule", name, tuple(RULES))) for name in _RULES.value}
    for changed in configs.values():
        build(changed)  # what is wrong with any of them is said before the first one trains
    workdir = Path(_WORKDIR.value)
    results = {}
    for name, changed in configs.items():
        results[name] = train_and_evaluate(changed, workdir / name)
        if stopped := results[name].stopped_by:
            return 128 + stopped
    text = table(results)
    (workdir / "table.md").write_text(text + "\n")
    learning_curves(results, workdir / "curves.png")
    print(f"\nTest accuracy on {config.dataset}, {config.model.name}:\n\n{text}\n")
    print(f"table: {workdir / 'table.md'}   learning curves: {workdir / 'curves.png'}")
    return 0


if __name__ == "__main__":
    run(main)
