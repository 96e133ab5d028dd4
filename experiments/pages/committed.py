"""Pictures of measurements that were kept: drawn again from the numbers in their pages."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from experiments.app.files import read_lines
from experiments.drawing.trades import Point, by_device, frontier
from experiments.pages.benchmark import pictures
from experiments.recipe import suite

Rows = list[dict[str, str]]


def tables(text: str) -> dict[str, Rows]:
    """The first table under each heading of a Markdown page, row by row; of columns of one title the last counts."""
    found: dict[str, Rows] = {}
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        if table := re.search(r"(?:^\|.*\n)+", part, re.MULTILINE):
            cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()]
            found[part.splitlines()[0]] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    return found


def drawn(results: Path) -> Mapping[str, Callable[[Path], None]]:
    """By its file's name, what draws each picture of ``experiments/results``, whose pages are in ``results``."""

    def page(name: str) -> dict[str, Rows]:
        return tables((results / name).read_text(encoding="utf-8"))

    kept, of_devices = page("frontier_cpu.md"), page("devices.md")
    axes = "memory of a step ÷ backprop's", "time of a step ÷ backprop's"
    found: dict[str, Callable[[Path], None]] = {}
    for network in ("ResNet-32", "ResNet-110"):
        panel = {f"{network}, CIFAR-10, batch 128, two CPU cores": [_point(row) for row in kept[network]]}
        found[f"frontier_{network.lower().replace('-', '')}_cpu.svg"] = partial(frontier, panel, *axes)
    found["devices_resnet32.svg"] = partial(
        by_device,
        {"ResNet-32, CIFAR-10, batch 1,024": _by_device(of_devices["ResNet-32, here and on an H100"])},
        "memory of a step ÷ backprop's on the same device",
    )
    return found


def _point(row: Mapping[str, str]) -> Point:
    small = re.match(r"(\d+) x", row["batch"])
    rule, blocks, best = row["rule"], int(row["blocks"]), row["frontier"] == "*"
    memory, time = float(row["÷ backprop's"]), float(row["time ÷ backprop's"])
    return Point(rule, blocks, "fused", int(small[1]) if small else 1, memory, time, best)


def _by_device(rows: Rows) -> dict[str, dict[str, float]]:
    """Ratios by case and device."""
    devices = ("CPU", "H100")
    others = [row for row in rows if row["rule"] != "backprop"]
    return {
        row["rule"] + f" K={row['blocks']}" * (row["blocks"] != "1"): {
            name: float(row[f"{name} ÷ backprop's"]) for name in devices
        }
        for row in others
    }


def redraw(results: Path, where: Path) -> list[Path]:
    """Draws all of them into a directory; the files that were written.

    Raises:
      UserError: if the lines of the benchmark are damaged.
    """
    written = []
    for name, draw in drawn(results).items():
        draw(where / name)
        written.append(where / name)
    lines = read_lines(results / "benchmark_cpu.jsonl", ("task", "row", "seed"))
    return [*written, *pictures(suite.read("cpu"), lines, where)]
