r"""Makes a run out of weights that were trained in PyTorch: analyze it, start from it, let it write.

.. code-block:: shell

    python -m experiments.import_reference --config=experiments/configs/auglocal_cifar10.py \
        --weights=/tmp/auglocal.safetensors --workdir=/tmp/auglocal

The file is a ``state_dict`` as ``.safetensors`` or ``.npz``; names are translated by the table that
``experiments.parity`` uses. A ``.pth`` file can run code when it is opened, so none is: convert it where it was made,
by ``safetensors.torch.save_model(model, path)``.

Weights are the authors', or torchvision's of a ResNet, or timm's of a ViT without a class token. Auxiliary heads that
the file has nothing of stay as they were initialised, as does a classifier of another number of classes: train on by
``--config.start_from``.

Weights of a GPT-2 are nanoGPT's, or Hugging Face's. They do not tell into how many heads attention is split: the config
does.
"""

from contextlib import closing

from absl import flags

from experiments.app.environment import environment
from experiments.app.errors import UserError
from experiments.app.files import given_path
from experiments.app.program import config_flag, run
from experiments.recipe.build import build
from experiments.reference.weights import filled, read
from experiments.training.checkpoint import Checkpoints, has_any
from experiments.training.loop import test
from experiments.training.metrics import metrics_of
from experiments.training.record import Recorder
from experiments.training.workdir import claimed

_CONFIG = config_flag("The network and rule of the weights.")
_WEIGHTS = flags.DEFINE_string("weights", None, "The state_dict: a .safetensors or .npz file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "A new directory for the run.")


def main() -> None:
    """Writes a finished run: its config, one checkpoint, and its test errors."""
    config = _CONFIG()
    if not _WEIGHTS.value or not _WORKDIR.value:
        raise UserError("--weights and --workdir are needed: the file, and a new directory for the run")
    workdir, weights = given_path(_WORKDIR.value, "--workdir"), given_path(_WEIGHTS.value, "--weights")
    if has_any(workdir):
        raise UserError(f"workdir {workdir} holds a run with checkpoints: give a new one")
    tensors = read(weights)
    experiment = build(config)
    state = filled(experiment, experiment.init(), tensors)
    about = experiment.describe(state)
    step = experiment.num_steps
    with claimed(workdir, experiment.config, about, environment()), closing(Checkpoints(workdir)) as checkpoints:
        with closing(Recorder(workdir, step)) as recorder:
            exits = test(step, state, experiment, recorder)
        checkpoints.save(step, state, metrics_of(experiment).of_last(exits))
    look = "generate --prompt=TEXT" if experiment.task.each else "analyze"
    print(
        f"{len(tensors)} tensors: {workdir}; now python -m experiments.{look} --workdir={workdir}, or train on, "
        f"--config.start_from={workdir}"
    )


if __name__ == "__main__":
    run(main)
