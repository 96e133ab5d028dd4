"""Downloads a data set once, in the format that training reads without TensorFlow.

.. code-block:: shell

    pip install 'jaxlocal[prepare]'      # TensorFlow, which only this command needs
    python -m experiments.prepare --dataset=cifar10 --data_dir=$HOME/tensorflow_datasets

Any image classification set of TFDS can be prepared, by its name there.
"""

import importlib.util

from absl import flags

from experiments.app.errors import UserError, user_input
from experiments.app.program import required, run
from jaxlocal import data
from jaxlocal.data.prepared import TFDS_NAMES

_DATASET = flags.DEFINE_string("dataset", None, "Which data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory; TFDS's own default if not given.")


def main() -> None:
    """Prepares the data set as array_record files."""
    name = required(_DATASET, "an image classification set of TFDS, as cifar10 or imagenet2012")
    of_tfds = name in TFDS_NAMES or not data.is_small(name)
    if data.is_text(name) or data.is_own(name) or not of_tfds:
        raise UserError(f"--dataset={name}: this one needs no preparing")
    try:
        with user_input("--dataset"):
            builder = data.tfds_builder(name, _DATA_DIR.value)
    except data.MissingDataError as error:
        raise UserError(str(error)) from error
    if not builder.is_prepared():
        if importlib.util.find_spec("tensorflow") is None:
            raise UserError("preparing a data set needs TensorFlow: pip install 'jaxlocal[prepare]'")
        try:
            builder.download_and_prepare()
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{name} could not be prepared: {reason}") from error
    counts = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    print(f"{name} is ready in {builder.data_dir}: {counts}")


if __name__ == "__main__":
    run(main)
