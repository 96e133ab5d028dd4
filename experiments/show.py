r"""Shows the network that a config trains, before anything is trained: units, cuts, heads, and what each block takes.

.. code-block:: shell

    python -m experiments.show --config=experiments/configs/auglocal_digits.py --svg=/tmp/network.svg

Memory and computation are the compiler's, of each block's update as a program of its own (as the streamed
executor runs it). No parameter is allocated.
"""

from pathlib import Path

from absl import flags

from experiments.app.errors import UserError
from experiments.app.files import given_path, saving
from experiments.app.program import config_flag, run
from experiments.cost.search import settled
from experiments.drawing.style import svg
from experiments.pages.network import blocks_of, draw, heads_of, table

_CONFIG = config_flag("What to show.", runs=False)
_DEVICE = flags.DEFINE_string("device", "", "A device to compile for instead of this one, as h100 or v5e.")
_SVG = flags.DEFINE_string("svg", None, "A file for the picture of it.")


def main() -> None:
    """Prints the network, and draws it."""
    given = _CONFIG()
    given.device = _DEVICE.value or given.device
    if _SVG.value and Path(_SVG.value).suffix != ".svg":
        raise UserError(f"--svg={_SVG.value}: give a file that ends in .svg")
    experiment = settled(given, say=print)
    config, blocks = experiment.config, blocks_of(experiment)
    print(
        f"{config.rule.name} on {config.model.name}, {config.dataset}: {len(experiment.network.units)} units in "
        f"{len(blocks)} blocks, cuts {list(experiment.network.cuts)}; batch {config.batch_size}, {config.dtype}"
        f"{f', compiled for {config.device}' if config.device else ''}\n\n"
        f"{table(blocks)}\n\n{heads_of(blocks)}"
    )
    if _SVG.value:
        path = given_path(_SVG.value, "--svg")
        with saving(f"--svg={path}", kind=UserError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(svg(draw(blocks)), encoding="utf-8")
        print(f"\npicture: {path}")


if __name__ == "__main__":
    run(main)
