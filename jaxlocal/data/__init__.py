"""Data sets: small ones decoded once and kept on the device, others read and decoded as they are needed."""

from jaxlocal.data.augment import RECIPES, Decoded, Examples, Recipe, decoded, prepare_with, recipe
from jaxlocal.data.described import Described
from jaxlocal.data.inputs import Devices, InMemory, Input
from jaxlocal.data.order import batch_indices, steps_per_epoch
from jaxlocal.data.prototypes import prototypes
from jaxlocal.data.sources import (
    NAMES,
    TEXTS,
    Dataset,
    MissingDataError,
    Split,
    is_small,
    is_text,
    load,
    tfds_builder,
)
from jaxlocal.data.stream import Streamed, UnreadableError
from jaxlocal.data.text import Text, Tokenized
from jaxlocal.data.vocabulary import Vocabulary
