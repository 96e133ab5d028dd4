"""Data sets: small ones decoded once and kept on the device, others read and decoded as they are needed."""

from jaxlocal.data.arrays import arrays
from jaxlocal.data.augment import AUGMENTS, RECIPES, Decoded, Examples, Recipe, decoded, prepare_with, recipe
from jaxlocal.data.described import Described
from jaxlocal.data.images import UnreadableError
from jaxlocal.data.inputs import Devices, InMemory, Input
from jaxlocal.data.order import batch_indices, steps_per_epoch
from jaxlocal.data.own import is_own, listed
from jaxlocal.data.prepared import NAMES, OWN, TEXTS, MissingDataError, is_text, tfds_builder, tfds_listed
from jaxlocal.data.prototypes import prototypes
from jaxlocal.data.records import Listed, evenly
from jaxlocal.data.sources import Dataset, Split, in_memory, is_small, load, resized
from jaxlocal.data.stream import Streamed
from jaxlocal.data.text import Text, Tokenized
from jaxlocal.data.vocabulary import Vocabulary
