r"""Draws the pictures of ``experiments/results`` again, from the numbers in its pages.

.. code-block:: shell

    python -m experiments.pictures

Nothing is measured. Run it where a page was changed; the tests fail where a picture was drawn from other numbers.
"""

from pathlib import Path

from absl import flags

from experiments.app.program import run
from experiments.pages.committed import redraw

RESULTS = Path(__file__).parent / "results"
_OUTPUT = flags.DEFINE_string("output", str(RESULTS), "The directory that they are written to.")


def main() -> None:
    """Draws them all, and says which."""
    for path in redraw(RESULTS, Path(_OUTPUT.value)):
        print(path)


if __name__ == "__main__":
    run(main)
