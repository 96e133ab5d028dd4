"""Downloads a data set once, in the format that training reads without TensorFlow.

.. code-block:: shell

    pip install -e '.[prepare]'          # TensorFlow, which only this command needs
    python -m experiments.prepare --dataset=cifar10 --data_dir=$HOME/tensorflow_datasets
"""

import importlib.util
from collections.abc import Sequence

from absl import flags

from experiments.cli import UserError, one_of, run, user_input
from jaxlocal.data import sources

_DATASET = flags.DEFINE_string("dataset", None, "Which data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory; TFDS's own default if not given.")


def main(argv: Sequence[str]) -> None:
    """Prepares the data set as array_record files."""
    del argv
    if not _DATASET.value:
        raise UserError(f"--dataset is needed: one of {', '.join(sources.TFDS_NAMES)}")
    name = one_of("data set", _DATASET.value, sources.TFDS_NAMES)
    import tensorflow_datasets as tfds

    with user_input("--data_dir"):
        builder = tfds.builder(name, data_dir=_DATA_DIR.value, file_format="array_record")
    if not builder.is_prepared():
        if importlib.util.find_spec("tensorflow") is None:
            raise UserError("preparing a data set needs TensorFlow: pip install -e '.[prepare]'")
        try:
            builder.download_and_prepare()
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{name} could not be prepared: {reason}") from error
    counts = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    print(f"{name} is ready in {builder.data_dir}: {counts}")


if __name__ == "__main__":
    run(main)
