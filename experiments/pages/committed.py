"""Pictures of measurements that were kept: drawn again from the numbers in their pages."""

import re
from collections.abc import Mapping
from pathlib import Path

from experiments.drawing.trades import Point, by_device, frontier

Rows = list[dict[str, str]]


def tables(text: str) -> dict[str, Rows]:
    """The first table under each heading of a Markdown page, row by row; of columns of one title the last counts."""
    found: dict[str, Rows] = {}
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        if table := re.search(r"(?:^\|.*\n)+", part, re.MULTILINE):
            cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()]
            found[part.splitlines()[0]] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    return found


def redraw(results: Path, where: Path) -> list[Path]:
    """Draws into a directory what the pages in ``results`` hold; the files that were written."""

    def page(name: str) -> dict[str, Rows]:
        return tables((results / name).read_text(encoding="utf-8"))

    kept, of_devices = page("frontier_cpu.md"), page("devices.md")
    axes = "memory of a step ÷ backprop's", "time of a step ÷ backprop's"
    written, networks = [], ("ResNet-32", "ResNet-110")
    for network in networks:
        panel = {f"{network}, CIFAR-10, batch 128, two CPU cores": [_point(row) for row in kept[network]]}
        written.append(where / f"frontier_{network.lower().replace('-', '')}_cpu.svg")
        frontier(panel, *axes, written[-1])
    rows = {f"{network}, CIFAR-10, batch 1,024": _by_device(of_devices[network]) for network in networks}
    written.append(where / "devices_resnet.svg")
    by_device(rows, f"{axes[0]} on the same device", written[-1])
    return written


def _point(row: Mapping[str, str]) -> Point:
    small = re.match(r"(\d+) x", row["batch"])
    rule, blocks, best = row["rule"], int(row["blocks"]), row["frontier"] == "*"
    memory, time = float(row["÷ backprop's"]), float(row["time ÷ backprop's"])
    return Point(rule, blocks, "fused", int(small[1]) if small else 1, memory, time, best)


def _by_device(rows: Rows) -> dict[str, dict[str, float]]:
    """Ratios by case and device; FLOPs are those of any."""
    relative = " ÷ backprop's"
    measured = [title.removesuffix(relative) for title in rows[0] if title.endswith(relative)]
    devices = [name for name in measured if name != "FLOPs"]
    others = [row for row in rows if row["rule"] != "backprop"]
    return {
        row["rule"] + f" K={row['blocks']}" * (row["blocks"] != "1"): {
            name: float(row[name + relative]) for name in devices
        }
        for row in others
    }
