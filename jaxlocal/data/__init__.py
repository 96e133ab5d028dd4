"""Data sets that fit in memory: decoded once, kept on the device, augmented inside the step."""

from jaxlocal.data.augment import RECIPES, Examples, Recipe, prepare_with, recipe
from jaxlocal.data.order import batch_indices, steps_per_epoch
from jaxlocal.data.sources import NAMES, Dataset, MissingDataError, Split, load

__all__ = [
    "NAMES",
    "RECIPES",
    "Dataset",
    "Examples",
    "MissingDataError",
    "Recipe",
    "Split",
    "batch_indices",
    "load",
    "prepare_with",
    "recipe",
    "steps_per_epoch",
]
