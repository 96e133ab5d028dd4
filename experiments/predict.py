r"""What a trained network takes files for: the classes of images, or how well it tells texts.

.. code-block:: shell

    python -m experiments.predict --workdir=/tmp/digits one.png two.png
    python -m experiments.predict --workdir=/tmp/shakespeare sonnet.txt

Of images of any size the part that evaluation would see is resized to what the network was trained on, and
normalised as there.
Classes are numbers, in the order of the data set.

Texts are files in UTF-8 (any files, where bytes were trained on). Every token but the first is told from those before
it in its window; the numbers are means over them.

Of a file that cannot be read the line says why; the others are told, and the program ends with an error.
"""

from absl import flags

from experiments.app.errors import UserError
from experiments.app.files import as_json
from experiments.app.program import required_path, run
from experiments.training import classify, reading
from experiments.training.trained import restore

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")


def main(*files: str) -> None:
    """One line of JSON for each file."""
    if not files:
        raise UserError("no file given: name images or texts after the flags, as --workdir=DIR one.png two.png")
    trained = restore(required_path(_WORKDIR, "the directory of the run"), _CHECKPOINT.value).one_seed()
    look = reading if trained.experiment.task.each else classify
    unread = []
    for line in look.lines(trained, files):
        print(as_json(line), flush=True)
        unread += [line["error"]] if "error" in line else []
    if unread:
        raise UserError(f"{len(unread)} of {len(files)} files cannot be read, the first: {unread[0]}")


if __name__ == "__main__":
    run(main, arguments=True)
