"""Recipes on noise: a few steps of any model at any size, to measure memory and speed, not to learn."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.configs import common
from experiments.recipe.experiment import Experiment
from experiments.recipe.registry import MODELS, make, named
from jaxlocal import data
from jaxlocal.objective import Batch


class Windows(NamedTuple):
    """What a language model reads.

    Attributes:
      context: tokens of a window.
      vocabulary: different ones.
    """

    context: int
    vocabulary: int


def windows_of(model: Mapping[str, Any]) -> Windows | None:
    """What a model of a config reads if it is a language model; None if it reads images.

    Raises:
      UserError: if there is no such model, or it reads tokens and a parameter is wrong.
    """
    if "vocabulary" not in inspect.signature(named("model", MODELS, model["name"])).parameters:
        return None
    first = make("model", MODELS, model)[0]
    return Windows(first.context, first.vocabulary)


def noise(model: Mapping[str, Any], side: int, classes: int, examples: int = 1024) -> ConfigDict:
    """A recipe for a model, on random tokens if it reads any.

    Args:
      model: of a config.
      side: of the images, if it reads these.
      classes: of these.
      examples: to train on, at least.
    """
    config = common.noise(side, classes, examples)
    if windows := windows_of(model):
        length = 2 * max(examples, config.batch_size) * (windows.context + 1)
        config.dataset = f"random_text_{windows.vocabulary}_{length}"
        config.optimizer = common.shakespeare().optimizer
        config.learning_rate = 1e-3
    config.model = ConfigDict({**model, **(windows._asdict() if windows else {})})
    return config


@functools.lru_cache(maxsize=1)  # the last one: of large batches they are large
def dataset(name: str, windows: Windows | None = None) -> data.Input:
    """The data set of a recipe on noise: one for all that are measured; with the windows of a language model."""
    if windows:
        return data.Text(name, windows.context, vocabulary=windows.vocabulary)
    return data.InMemory(data.load(name))


def batch(experiment: Experiment, examples: int) -> Batch:
    """So many random examples as a network reads them, in host memory."""
    rng, like = np.random.default_rng(0), experiment.dataset.example(examples)

    def drawn(x: jax.ShapeDtypeStruct) -> Any:
        whole = np.issubdtype(x.dtype, np.integer)
        values = rng.integers(0, experiment.task.num_classes, x.shape) if whole else rng.normal(size=x.shape)
        return values.astype(x.dtype)

    return jax.tree.map(drawn, like)
