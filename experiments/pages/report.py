"""One page about one run or several, as HTML."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.app.calls import as_call
from experiments.app.errors import UserError, user_input
from experiments.app.files import read_lines
from experiments.drawing import figures
from experiments.recipe.fields import check_fields
from experiments.training.metrics import Metrics, recorded
from experiments.training.results import best_exit, by_block, of_seeds, over_time, tested
from experiments.training.workdir import load_config, load_record

# What the pictures of experiments.analyze show.
_ANALYSIS = {
    "probes": "Test error of a linear probe of every unit",
    "gradients": "Cosine between each block's local gradient and the end-to-end gradient of the same units",
    "cka": "Similarity of representations (linear CKA)",
    "confusion": "Classes that the last exit takes for others",
    "memory": "Memory of each block's update, in the order of a step",
}


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h2, td, th { overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: 1rem 0; }
.wide td, .wide th { overflow-wrap: normal; }
.wide td + td { white-space: nowrap; }
table { border-collapse: collapse; font-size: 0.875rem; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: 0.875rem; color: #555; }
svg { max-width: 100%; height: auto; }
details { margin: 0.7rem 0; } pre { overflow-x: auto; background: #f5f5f5; padding: 0.7rem; font-size: 0.8rem; }
"""


class Run(NamedTuple):
    """What a directory tells of a run.

    Attributes:
      name: of the run, on the page.
      directory: its workdir.
      config: as it was given.
      about: cuts and parameter counts.
      environment: versions and device.
      history: the lines of ``metrics.jsonl``.
      steps: at which the test split was evaluated.
      metrics: what is said of its task.
      values: the headline number at every exit at each of them, ``[steps, exits]``; mean over seeds.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    environment: Mapping[str, str]
    history: Sequence[Mapping[str, Any]]
    steps: Sequence[int]
    metrics: Metrics
    values: np.ndarray


def read(directories: Sequence[Path]) -> list[Run]:
    """The runs, named after their rules where these differ, else after their directories.

    Raises:
      UserError: if there is no run in one of them, its config is damaged, nothing was evaluated yet, or runs are of
        tasks whose numbers cannot be compared.
    """
    for directory in directories:
        check_fields(load_config(directory))
    records = [load_record(directory) for directory in directories]
    rules = [as_call(record["config"]["rule"]) for record in records]
    names = rules if len(set(rules)) == len(rules) else list(map(str, directories))
    runs = []
    for name, directory, record in zip(names, directories, records, strict=True):
        history = read_lines(directory / "metrics.jsonl")
        said = recorded(record["config"], record.get("about", {}))
        steps, values = over_time(history, said.headline)
        if not steps:
            raise UserError(f"{directory}: nothing was evaluated yet, so there is nothing to report; train on")
        if not {"about", "environment"} <= record.keys():
            raise UserError(f"{directory / 'config.json'} has no fields 'about' and 'environment': not of a run")
        about, environment = record["about"], record["environment"]
        runs.append(Run(name, directory, record["config"], about, environment, history, steps, said, values))
        if said != runs[0].metrics:
            raise UserError(
                f"{directories[0]} has {runs[0].metrics.title}, {directory} has {said.title}: make a page of each"
            )
    return runs


def page(runs: Sequence[Run]) -> str:
    """The whole page, as HTML."""
    title = " and ".join(this.name for this in runs) if len(runs) < 3 else f"{len(runs)} runs"
    trained = dict.fromkeys(f"{this.config['model']['name']} on {this.config['dataset']}" for this in runs)
    parts = [f"<h1>{_text(title)}</h1>", _paragraph("; ".join(trained)), _overview(runs)]
    if len(runs) > 1:
        said, curves = runs[0].metrics, {this.name: (this.steps, this.values[:, -1]) for this in runs}
        caption = f"{said.name.capitalize()} at the last exit"
        parts += [_pictures({caption: _curves(curves, said.axis(), log=said.log)}), _differences(runs)]
    parts += [_section(this) for this in runs]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n"
        "</html>\n"
    )


def _overview(runs: Sequence[Run]) -> str:
    headline = runs[0].metrics.headline
    exits = (f"{which} exit, {headline.title}" for which in ("last", "best"))
    rows: list[Sequence[Any]] = [("run", "blocks", "steps", *exits, "parameters", "in heads", "device")]
    for this in runs:
        last, counts = this.values[-1], this.about["parameters"]
        steps = f"{this.steps[-1]:,} of {this.about['num_steps']:,}"
        sizes = (f"{sum(block[part] for block in counts):,}" for part in ("network", "head"))
        exits_of_run = (headline.said(last[-1]), best_exit(headline, last))
        rows.append((this.name, len(counts), steps, *exits_of_run, *sizes, this.environment["device"]))
    return _table(rows)


def _differences(runs: Sequence[Run]) -> str:
    """The fields of config and environment in which the runs differ."""
    flat = [{**_flat(this.config), **_flat(this.environment, "environment.")} for this in runs]
    fields = sorted({field for of_run in flat for field in of_run if not field.startswith("evidence.")})
    rows: list[Sequence[Any]] = [("differs in", *(this.name for this in runs))]
    for field in fields:
        values = [of_run.get(field, "-") for of_run in flat]
        if any(value != values[0] for value in values):
            rows.append((field, *values))
    return _table(rows) if len(rows) > 1 else _paragraph("The runs were given the same config.")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return found


def _section(this: Run) -> str:
    train = sorted({line["step"] for line in this.history if line["split"] == "train"})
    said = this.metrics
    exits = figures.exits(this.steps, this.values, said.axis(), log=said.log)
    shown = {f"{said.name.capitalize()} at every exit": figures.inline(exits)}
    if train:
        losses = _losses(this, "train", train)
        blocks = {f"block {i}": (train, losses[:, i]) for i in range(losses.shape[1])}
        shown["Training loss of every block (single steps)"] = _curves(blocks, "training loss", log=True)
    for name, caption in _ANALYSIS.items():
        path = this.directory / "analysis" / f"{name}.svg"
        if path.exists():
            with user_input(str(path)):
                shown[caption] = figures.embedded(path.read_text(encoding="utf-8"))
    about, first, count = this.about, this.config["seed"], this.config["seeds"]
    seeds = f"seed {first}" if count == 1 else f"mean of seeds {first} to {first + count - 1}"
    facts = (
        f"{about['units']} units, cuts {about['cuts']}; {about['train_examples']:,} training and "
        f"{about['test_examples']:,} test examples; batch {this.config['batch_size']}, {this.config['dtype']}, "
        f"{seeds}; {this.directory}"
    )
    return "\n".join(
        (
            f"<h2>{_text(this.name)}</h2>",
            _paragraph(facts),
            _pictures(shown),
            _blocks(this),
            _folded("Config", json.dumps(this.config, indent=2)),
            _folded("Environment", json.dumps(this.environment, indent=2)),
        )
    )


def _losses(this: Run, split: str, steps: Sequence[int]) -> np.ndarray:
    """The loss of every block, mean over seeds: ``[steps, blocks]``."""
    lines = [[line["loss"] for line in this.history if line["split"] == split and line["step"] == s] for s in steps]
    return np.array([np.mean(np.array(of_seeds, float), axis=0) for of_seeds in lines])


def _blocks(this: Run) -> str:
    counts, losses = this.about["parameters"], _losses(this, "test", this.steps[-1:])[0]
    said, seeds = this.metrics, tested(this.history, this.steps[-1])
    exits = [by_block(metric, np.mean(of_seeds(metric, seeds), axis=0), len(counts)) for metric in said.columns]
    titles = (said.title, *(metric.title for metric in said.others))
    rows: list[Sequence[Any]] = [("block", "first unit", "parameters", "in head", "test loss", *titles)]
    for i, (count, first) in enumerate(zip(counts, (0, *this.about["cuts"]), strict=True)):
        sizes = (f"{count[part]:,}" for part in ("network", "head"))
        rows.append((i, first, *sizes, f"{losses[i]:.4f}", *(column[i] for column in exits)))
    return _table(rows)


def _curves(curves: Mapping[str, tuple[Any, Any]], ylabel: str, *, log: bool) -> str:
    return figures.inline(figures.lines(curves, "step", ylabel, log=log))


def _pictures(shown: Mapping[str, str]) -> str:
    drawn = (
        svg.replace("<svg", f'<svg role="img" aria-label="{_text(caption)}"', 1) + f"<figcaption>{_text(caption)}"
        for caption, svg in shown.items()
    )
    return f'<div class="pictures">{"".join(f"<figure>{figure}</figcaption></figure>" for figure in drawn)}</div>'


def _table(rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows[1:])
    head = line(rows[0], "th")
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{_text(title)}</summary><pre>{_text(content)}</pre></details>"


def _paragraph(content: str) -> str:
    return f"<p>{_text(content)}</p>"


def _text(content: Any) -> str:
    return html.escape(str(content))
