r"""Draws the pictures of ``experiments/results`` again, from the numbers in its pages.

.. code-block:: shell

    python -m experiments.pictures

Nothing is measured. Run it where a page was changed; the tests fail where a picture was drawn from other numbers.
"""

from pathlib import Path

from absl import flags

from experiments.app.errors import UserError
from experiments.app.files import given_path, saving
from experiments.app.program import run
from experiments.pages.benchmark import pictures
from experiments.pages.committed import redraw
from experiments.recipe import suite
from experiments.trials.runs import lines_of

RESULTS = Path(__file__).parent / "results"
_OUTPUT = flags.DEFINE_string("output", str(RESULTS), "The directory that they are written to.")


def main() -> None:
    """Draws them all, and says which."""
    where, tasks = given_path(_OUTPUT.value, "--output"), suite.read("cpu")
    known = lines_of(RESULTS / "benchmark_cpu.jsonl", tasks)
    with saving(f"--output={where}", kind=UserError):
        where.mkdir(parents=True, exist_ok=True)
        for path in (*redraw(RESULTS, where), *pictures(tasks, list(known.values()), where)):
            print(path)


if __name__ == "__main__":
    run(main)
