import contextlib
import tracemalloc
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from jaxlocal import data
from jaxlocal.data import sources
from jaxlocal.data.augment import Recipe, normalise, random_crop, random_flip
from jaxlocal.executors import ONE_DEVICE

SHAPES = {
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "svhn_cropped": (32, 32, 3),
    "stl10": (96, 96, 3),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
}
KEY = jax.random.key(0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLOCAL_CACHE", str(tmp_path))
    return tmp_path / "data"


def test_digits():
    digits = data.load("digits")
    assert digits.train.image.shape == (1437, 8, 8, 1)
    assert digits.test.image.shape == (360, 8, 8, 1)
    assert digits.train.image.dtype == np.uint8
    assert digits.train.image.max() == 255
    assert set(digits.test.label) == set(range(10))
    together = {x.tobytes() for x in digits.train.image} & {x.tobytes() for x in digits.test.image}
    assert not together


@pytest.mark.parametrize("name", sources.TFDS_NAMES)
def test_tfds_sets_are_read_without_tensorflow(name, cache):
    import sys

    with tfds.testing.mock_data(num_examples=6):
        mocked = data.load(name)
    for split in (mocked.train, mocked.test):
        assert split.image.shape == (6, *SHAPES[name])
        assert split.image.dtype == np.uint8
        assert split.label.dtype == np.int32
        assert split.label.max() < mocked.num_classes
    assert mocked.num_classes == (100 if name == "cifar100" else 10)
    assert len(data.RECIPES[name].mean) == SHAPES[name][-1]
    assert "tensorflow" not in sys.modules


def test_the_second_reading_is_from_the_cache(cache, monkeypatch):
    with tfds.testing.mock_data(num_examples=5):
        first = data.load("mnist")
        with monkeypatch.context() as patched:
            patched.setattr(sources, "_decode", lambda *_: pytest.fail("decoded again"))
            second = data.load("mnist")
    np.testing.assert_array_equal(first.train.image, second.train.image)
    assert sorted(path.suffix for path in cache.iterdir()) == [".npz", ".npz"]


def test_another_set_of_the_same_name_and_length_is_another(cache, monkeypatch, tmp_path):
    """What is cached is told apart by the files that it was decoded from."""
    found = {}
    for value in (1, 2):
        shard = tmp_path / f"directory_{value}"
        shard.write_bytes(bytes([value]))
        info = SimpleNamespace(version="3.0.1", splits={"train": SimpleNamespace(filepaths=[shard])})
        examples = [{"image": np.full((2, 2, 1), value, np.uint8), "label": value}] * 3
        monkeypatch.setattr(sources, "tfds_records", lambda builder, split, of=examples: of)
        for _ in range(2):
            found[value] = sources._cached(SimpleNamespace(name="mnist", info=info), "train")
    assert [found[value].label.tolist() for value in (1, 2)] == [[1] * 3, [2] * 3]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "near"),
    [("CIFAR10", "cifar10"), ("imagenet", "imagenet2012"), ("MNST", "mnist")],
)
def test_a_near_name_is_told_whatever_its_case(name, near):
    with pytest.raises(ValueError, match=f"unknown data set '{name}': did you mean '{near}'"):
        data.tfds_listed(name, None)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_cache_is_decoded_again(cache, damage):
    with tfds.testing.mock_data(num_examples=5):
        first = data.load("mnist")
        (path,) = cache.glob("*-train-*.npz")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        written = {"flip": bytes(content), "cut": bytes(content[:999]), "empty": b"", "other": b"x" * 999}[damage]
        path.write_bytes(written)
        np.testing.assert_array_equal(data.load("mnist").train.image, first.train.image)
        assert path.read_bytes() != written


def test_a_missing_set_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(data.MissingDataError, match=rf"stl10 is not prepared in {tmp_path} as array_record"):
        data.load("stl10", tmp_path)


def test_a_set_in_another_format_is_missing(tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "mnist", "version": "3.0.1", "fileFormat": "tfrecord"}')
    (folder / "features.json").write_text("{}")
    with pytest.raises(data.MissingDataError, match=r"not as array_record"):
        data.load("mnist", tmp_path)


def test_unknown_set():
    with pytest.raises(ValueError, match=r"unknown data set 'x': known are digits, cifar10"):
        data.load("x")


@given(st.integers(1, 200), st.data(), st.integers(0, 5))
def test_an_epoch_visits_examples_once(n, draw, seed):
    batch = draw.draw(st.integers(1, n))
    steps = data.steps_per_epoch(n, batch)
    for epoch in (0, 3):
        seen = np.concatenate([data.batch_indices(seed, epoch * steps + i, n, batch) for i in range(steps)])
        assert len(set(seen)) == steps * batch
        assert seen.min() >= 0
        assert seen.max() < n


def test_the_order_depends_on_seed_and_epoch_alone():
    order = [data.batch_indices(seed, step, 100, 10) for seed in (0, 1) for step in (0, 10)]
    assert len({tuple(x) for x in order}) == 4
    np.testing.assert_array_equal(data.batch_indices(0, 7, 100, 10), data.batch_indices(0, 7, 100, 10))


def test_noise_of_any_number_of_images_takes_no_memory_until_it_is_used():
    tracemalloc.start()
    image, label = data.load("random_32_10_1000000").train
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert image.shape == (1_000_000, 32, 32, 3)
    assert set(np.unique(label)) == set(range(10))
    few = image[:1000].reshape(1000, -1)
    assert len(np.unique(few, axis=0)) == 1000
    assert abs(few.mean() - 127.5) < 5


def test_each_epoch_of_each_seed_is_drawn_once(monkeypatch):
    """However many seeds train together; and of each, one epoch is kept."""
    drawn = []
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or real(seed))
    dataset = data.InMemory(data.load("random_8_10_64"))
    steps = 2 * data.steps_per_epoch(dataset.num_train, 8)
    drawn.clear()
    with contextlib.closing(
        dataset.train(ONE_DEVICE, dataset.resident(ONE_DEVICE), range(steps), 8, range(40))
    ) as stream:
        batches = list(stream)
    assert sorted(drawn) == [(seed, epoch) for seed in range(40) for epoch in range(2)]
    monkeypatch.undo()
    for step, batch in enumerate(batches):
        expected = [data.batch_indices(seed, step, dataset.num_train, 8) for seed in range(40)]
        np.testing.assert_array_equal(batch.chosen, expected)


@pytest.mark.parametrize("batch", [0, 101])
def test_impossible_batch(batch):
    with pytest.raises(ValueError, match="choose 1 to 100"):
        data.steps_per_epoch(100, batch)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_a_random_crop_is_a_window_of_the_padded_image(mode):
    image = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 2)).astype(np.uint8)
    cropped = np.asarray(random_crop(jnp.asarray(image), KEY, 2, mode))
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
    corners = set()
    for got, source in zip(cropped, padded, strict=True):
        windows = {(y, x) for y in range(5) for x in range(5) if (source[y : y + 6, x : x + 6] == got).all()}
        assert windows
        corners |= windows
    assert len(corners) > 15


def test_flips_mirror_about_half():
    image = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3)).astype(np.uint8)
    flipped = np.asarray(random_flip(jnp.asarray(image), KEY))
    mirrored = (flipped == image[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == image).all((1, 2, 3))).all()
    assert 70 < mirrored.sum() < 130


def test_normalisation():
    image = jnp.full((1, 2, 2, 3), 100, jnp.uint8)
    got = normalise(image, Recipe((100.0, 90.0, 110.0), (10.0, 20.0, 5.0)))
    np.testing.assert_allclose(got[0, 0, 0], [0, 0.5, -2])


def test_the_test_split_is_only_normalised():
    digits = data.load("digits").train
    examples = data.Examples(*(jnp.asarray(x) for x in digits), jnp.array([3, 1]))
    recipe = data.RECIPES["cifar10"]._replace(mean=(0.0,), std=(255.0,))
    prepare = data.prepare_with(recipe)
    plain = prepare(examples, KEY, train=False)
    np.testing.assert_allclose(plain.input, digits.image[[3, 1]] / 255, rtol=1e-6)
    np.testing.assert_array_equal(plain.label, digits.label[[3, 1]])
    augmented = prepare(examples, KEY, train=True)
    assert (augmented.input != plain.input).any()
