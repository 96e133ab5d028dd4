r"""One page about one run or several: settings, environment, curves of every block, tables, and how runs compare.

.. code-block:: shell

    python -m experiments.report --workdir=/tmp/digits --workdir=/tmp/backprop --output=/tmp/report.html

The page is one file that needs no network. Pictures that ``experiments.analyze`` left in a run's directory are in it.
"""

from absl import flags

from experiments.app.errors import UserError
from experiments.app.files import given_path, saving
from experiments.app.program import required, run
from experiments.pages.report import page, read

_WORKDIRS = flags.DEFINE_multi_string("workdir", [], "The directory of a run; may be given more than once.")
_OUTPUT = flags.DEFINE_string("output", None, "The page. Default: report.html in the first run's directory.")


def main() -> None:
    """Writes the page."""
    directories = [
        given_path(text, "--workdir")
        for text in required(_WORKDIRS, "the directory of a run; give it more than once to compare several")
    ]
    if len(set(directories)) < len(directories):
        raise UserError("--workdir: name each run once")
    text = page(read(directories))
    path = given_path(_OUTPUT.value, "--output") if _OUTPUT.value else directories[0] / "report.html"
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"report: {path} ({len(text) / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main)
