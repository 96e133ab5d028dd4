"""A small set of encoded images, on disk and in place of TFDS's own."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NAME = "tiny_pictures"
CLASSES = 3


def encoded(index: int, format: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (24, 18)) -> bytes:
    """One grey value, which says which image it is; noise of one level, so that crops differ."""
    value = np.full((size[1], size[0]), 4 * index, np.uint8)
    value += np.random.default_rng(index).integers(0, 2, value.shape, np.uint8)
    file = io.BytesIO()
    Image.fromarray(value).convert(mode).save(file, format)
    return file.getvalue()


class Source:
    """What ``as_data_source`` gives where images are not decoded."""

    def __init__(self, n: int, classes: int) -> None:
        self.n, self.classes = n, classes

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict:
        return {"image": encoded(index % 60), "label": index % self.classes}


def in_place_of_tfds(builder, split, decoders=None, **_):
    """For ``tfds.testing.mock_data(as_data_source_fn=...)``."""
    assert decoders, "images come as bytes"
    return Source(64, builder.info.features["label"].num_classes)


with tfds.core.registered.skip_registration():  # it is found by its files, as any set in a TFDS directory

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        """Bytes of images, by split; the label is the index modulo the classes."""

        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, splits: dict, **kwargs) -> None:
            self._images = splits
            super().__init__(**kwargs)

        def _info(self):
            label = tfds.features.ClassLabel(num_classes=CLASSES)
            features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": label}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(name, images) for name, images in self._images.items()}

        def _generate_examples(self, name, images):
            for i, image in enumerate(images):
                yield i, {"image": io.BytesIO(image), "label": -1 if name == "test" else i % CLASSES}


def write(directory: Path, **splits: list[bytes]) -> Path:
    """Prepares the set; returns the directory."""
    TinyPictures(splits, data_dir=directory, file_format="array_record").download_and_prepare()
    return directory
