"""A user's own data, in each form that they may have: what is read, what is refused, and a run on it."""

import csv
import json
import os
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.app.errors import UserError
from experiments.recipe.build import build
from experiments.training.loop import train_and_evaluate
from experiments.training.trained import restore
from experiments.training.workdir import load_config
from jaxlocal import data
from jaxlocal.data import augment
from jaxlocal.executors import ONE_DEVICE
from tests.programs import assert_one_line_error, program, train
from tests.test_programs import digits

NAMES = ("ant", "bee", "cat")
N = 60
DIGITS = data.load("digits")


def picture(i: int) -> Image.Image:
    return Image.fromarray(DIGITS.train.image[i, :, :, 0])


def folder(root: Path, *, split: bool = True) -> Path:
    """Digits of three classes as PNG files, by class; every sixth is to test."""
    for i in range(N):
        label = NAMES[i % 3]
        directory = root / ("test" if i % 6 == 0 or i % 18 in (1, 5) else "train") / label if split else root / label
        directory.mkdir(parents=True, exist_ok=True)
        picture(i).save(directory / f"{i:03d}.png")
    return root


def table(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    file = root / "labels.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as opened:
        rows = csv.writer(opened)
        rows.writerow(["path", "label"])
        for i in range(N):
            picture(i).save(root / f"{i:03d}.png")
            rows.writerow([f"{i:03d}.png", NAMES[i % 3]])
    return file


def numbers(file: Path, **arrays) -> Path:
    given = {"image": DIGITS.train.image[:N, :, :, 0], "label": np.arange(N) % 3}
    np.savez(file, **(arrays or given))
    return file


def config(name, **changes):
    return digits(**{"dataset": name, "batch_size": 8, "eval_batch_size": 8, "eval_examples": 0, **changes})


def load(name, **changes) -> data.Input:
    return build(config(name, **changes)).dataset


def test_every_form_holds_the_same_examples(tmp_path):
    """Of equal order here: files are numbered, and the seed draws the same fifth of each class."""
    found = {
        "images": load(f"images:{folder(tmp_path / 'images', split=False)}"),
        "csv": load(f"csv:{table(tmp_path / 'csv')}"),
        "arrays": load(f"arrays:{numbers(tmp_path / 'numbers.npz')}"),
    }
    for form, dataset in found.items():
        assert type(dataset) is data.InMemory
        assert (dataset.num_train, dataset.num_test, dataset.task.num_classes) == (48, 12, 3), form
        assert dataset.classes == (NAMES if form != "arrays" else ("0", "1", "2"))
        assert dataset.example(1).input.shape == (1, 8, 8, 1)
        by_class = {
            (int(y), x.tobytes()) for split in (dataset._train, dataset._test) for x, y in zip(*split, strict=True)
        }
        assert by_class == {(i % 3, DIGITS.train.image[i].tobytes()) for i in range(N)}
        assert np.bincount(dataset._test.label).tolist() == [4, 4, 4]
    other = load(f"csv:{tmp_path / 'csv' / 'labels.csv'}", split_seed=1)
    assert other.fingerprint != found["csv"].fingerprint
    assert load(f"csv:{tmp_path / 'csv' / 'labels.csv'}").fingerprint == found["csv"].fingerprint


def test_splits_of_their_own_are_kept(tmp_path):
    dataset = load(f"images:{folder(tmp_path)}")
    assert (dataset.num_train, dataset.num_test) == (42, 18)
    (tmp_path / "test").rename(tmp_path / "val")
    assert load(f"images:{tmp_path}").num_test == 18
    train = {"x_train": DIGITS.train.image[:9], "y_train": np.arange(9)[:, None] % 3}
    numbers(tmp_path / "a.npz", **train, x_test=DIGITS.test.image[:6], y_test=np.arange(6) % 3)
    assert load(f"arrays:{tmp_path / 'a.npz'}", batch_size=3).num_test == 6
    numbers(
        tmp_path / "b.npz", train_images=train["x_train"], train_labels=train["y_train"], val_images=train["x_train"]
    )
    with pytest.raises(UserError, match="it has val_images, and no labels to it among"):
        load(f"arrays:{tmp_path / 'b.npz'}", batch_size=3)


def test_names_of_splits_are_known_whatever_their_case(tmp_path):
    folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / "Training")
    (tmp_path / "test").rename(tmp_path / "TEST")
    assert load(f"images:{tmp_path}").classes == NAMES


def test_of_a_table_the_test_rows_are_evaluated_where_there_are_others(tmp_path):
    file = table(tmp_path / "csv")
    splits = ["train", "train", "val", "test"]
    lines = [f"{i:03d}.png,{NAMES[i % 3]},{splits[i % 4]}" for i in range(N)]
    file.write_text("\n".join(["path,label,split", *lines]))
    assert (load(f"csv:{file}").num_train, load(f"csv:{file}").num_test) == (30, 15)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_some_of_the_test_images_are_of_all_classes(tmp_path, in_memory):
    folder(tmp_path)
    dataset = load(f"images:{tmp_path}", eval_examples=9, in_memory=in_memory)
    (chunk,) = (jax.device_get(data_) for _, data_ in dataset.test(ONE_DEVICE, 9))
    assert set(augment.decoded(chunk).label.tolist()) == {0, 1, 2}


def test_names_that_are_no_text_and_links_are_read(tmp_path):
    folder(tmp_path / "own")
    directory = tmp_path / "own" / "train" / "ant"
    (directory / "009.png").rename(directory / os.fsdecode(b"\xe9.png"))
    shutil.move(directory, tmp_path / "elsewhere")
    directory.mkdir()
    (directory / "more").symlink_to(tmp_path / "elsewhere")
    assert load(f"images:{tmp_path / 'own'}").num_train == 42


def test_images_are_normalised_by_their_own_mean_and_deviation(tmp_path):
    dataset = load(f"arrays:{numbers(tmp_path / 'a.npz')}")
    image = dataset._train.image.astype(float)
    np.testing.assert_allclose(dataset.treatment.mean, [image.mean()], rtol=1e-6)
    np.testing.assert_allclose(dataset.treatment.std, [image.std()], rtol=1e-6)
    given = load(f"arrays:{tmp_path / 'a.npz'}", mean=(100,), std=(50.0,))
    assert given.treatment[:2] == ((100,), (50.0,))
    constant = data.InMemory(
        data.Dataset("mine", 2, *[data.Split(np.full((4, 2, 2, 3), 7, np.uint8), np.arange(4) % 2)] * 2)
    )
    assert constant.treatment.std == (1.0,) * 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (DIGITS.train.image[:N], DIGITS.train.image[:N]),
        (DIGITS.train.image[:N].astype(np.int64), DIGITS.train.image[:N]),
        (DIGITS.train.image[:N].astype(np.float32), DIGITS.train.image[:N]),
        (DIGITS.train.image[:N] / 255, DIGITS.train.image[:N]),
        (DIGITS.train.image[:N].astype(np.uint16) * 257, DIGITS.train.image[:N]),
        (DIGITS.train.image[:N] > 99, (DIGITS.train.image[:N] > 99) * 255),
    ],
    ids=["bytes", "integers", "floats", "floats to 1", "16 bits", "booleans"],
)
def test_arrays_of_any_number_are_bytes(tmp_path, values, expected):
    numbers(tmp_path / "a.npz", x_train=values, y_train=np.arange(N) % 3, x_test=values, y_test=np.arange(N) % 3)
    np.testing.assert_array_equal(load(f"arrays:{tmp_path / 'a.npz'}")._test.image, expected)


IMAGES = np.zeros((9, 4, 4, 1), np.uint8)
LABELS = np.arange(9) % 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": IMAGES}, "it has image, and no labels to it among image"),
        ({"a": IMAGES}, "it has the arrays a: give x_train"),
        ({"image": IMAGES, "label": LABELS[:8]}, r"images of shape \(9, 4, 4, 1\), labels of shape \(8,\)"),
        ({"image": IMAGES - 0.5, "label": LABELS}, "images hold -0.5 to -0.5: give bytes"),
        ({"image": IMAGES + 300.0, "label": LABELS}, "images hold 300 to 300: give bytes"),
        ({"image": IMAGES + np.nan, "label": LABELS}, "an image holds NaN or infinity"),
        ({"image": IMAGES.astype("U1"), "label": LABELS}, "images are <U1 of shape"),
        ({"image": IMAGES[:, 0, 0], "label": LABELS}, r"images are uint8 of shape \(9, 1\): give numbers \[n, h, w\]"),
        ({"image": np.zeros((9, 3, 8, 8), np.uint8), "label": LABELS}, "give channels last"),
        ({"image": IMAGES, "label": np.eye(9)[:, :3]}, r"labels are float64 of shape \(9, 3\).*argmax"),
        ({"image": IMAGES, "label": LABELS + 0.5}, "give whole numbers from 0"),
        ({"image": IMAGES, "label": LABELS - 1}, "labels -1 to 1: give whole numbers from 0"),
        ({"image": IMAGES, "label": LABELS * 1000}, "labels go up to 2000, and there are 3"),
        ({"image": IMAGES, "label": np.where(LABELS, np.nan, 0)}, "give whole numbers from 0"),
        ({"image": IMAGES, "label": np.arange(9)}, "class 0 has one example"),
        ({"image": IMAGES, "label": LABELS * 0}, r"images of one class \(0\)"),
        ({"image": IMAGES, "label": LABELS + 1}, "class '0' has no training image"),
        (
            {"x_train": IMAGES, "y_train": LABELS % 2, "x_test": IMAGES, "y_test": LABELS},
            "class '2' has no training image",
        ),
        (
            {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES / 255, "y_test": LABELS},
            "are uint8 and float64: give one",
        ),
        ({"image": np.zeros((9, 4, 4, 4), np.uint8), "label": LABELS}, "images have 4 channels"),
        ({"image": IMAGES + 1.5, "label": LABELS}, "floats up to 1.5, which may be parts of 1 or of 255"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, "images are uint8 of shape"),
    ],
)
def test_arrays_that_are_no_images_and_labels_get_one_line(tmp_path, given, message):
    numbers(tmp_path / "a.npz", **given)
    with pytest.raises(UserError, match=message) as raised:
        load(f"arrays:{tmp_path / 'a.npz'}", batch_size=2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x93NUMPY", "array", "objects"])
def test_a_file_that_is_no_archive_of_arrays_gets_one_line(tmp_path, content):
    path = tmp_path / "a.npz"
    if content == "array":
        np.save(tmp_path / "a.npy", IMAGES)
        (tmp_path / "a.npy").rename(path)
    elif content == "objects":
        np.savez(path, image=np.array([{}], object), label=LABELS)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz") as raised:
        load(f"arrays:{path}")
    assert "\n" not in str(raised.value)


def broken_folder(change):
    def make(root):
        folder(root)
        change(root)
        return f"images:{root}"

    return make


def broken_table(text):
    def make(root):
        table(root).write_text(text, encoding="utf-8")
        return f"csv:{root / 'labels.csv'}"

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: f"images:{root}/none", "there is no .*none: give the place where it is now by --config.data_dir"),
        (lambda root: "images:", "write images:DIR, csv:FILE, hf:DIR"),
        (lambda root: f"images:{table(root)}", "is no directory: give one that has a directory for each class"),
        (lambda root: f"images:{table(root).parent}", "has no directory of images for each class"),
        (broken_folder(lambda root: (root / "train" / "dog").mkdir()), "dog holds no image"),
        (broken_folder(lambda root: shutil.rmtree(root / "test")), "has train, and no test or val"),
        (
            broken_folder(lambda root: (root / "train").rename(root / "fit")),
            "has test, and no train or training beside it",
        ),
        (
            broken_folder(lambda root: (root / "train" / "bee" / "x.png").symlink_to("/none")),
            "x.png is no file, or a link",
        ),
        (broken_folder(lambda root: os.mkfifo(root / "train" / "bee" / "x.png")), "x.png is no file"),
        (
            broken_folder(
                lambda root: [
                    (root / split / "bee").rename(root / split / os.fsdecode(b"b\xe9")) for split in ("train", "test")
                ]
            ),
            r"class 'b\\udce9' is not UTF-8: rename it",
        ),
        (
            broken_folder(lambda root: shutil.copytree(root / "test" / "ant", root / "test" / "dog")),
            "is of class 'dog'",
        ),
        (
            broken_folder(lambda root: (root / "train" / "ant" / "015.png").write_bytes(b"x")),
            "015.png cannot be read: no",
        ),
        (broken_table("a,b\n1,2\n"), "the first line has to name the columns path and label, not a, b"),
        (broken_table(""), "the first line has to name"),
        (broken_table("path,label\n000.png\n"), "line 2: no path, or no label"),
        (broken_table("path,label\n000.png,a\nx.png,b\n"), "line 3: there is no file .*x.png"),
        (broken_table("path,label,split\n000.png,a,maybe\n"), "line 2: split 'maybe': write train or test"),
        (broken_table("path,label,split\n000.png,a,train\n000.png,a,test\n"), "line 3: .*000.png is in line 2 already"),
        (broken_table("path,label\n000.png,a\n001.png,a\n"), r"images of one class \(a\)"),
        (broken_table("path,label\n000.png,a\n001.png,b\n"), "class a has one example, and no test split"),
    ],
)
def test_files_that_cannot_be_trained_on_get_one_line(tmp_path, make, message):
    name = make(tmp_path / "own")
    with pytest.raises(UserError, match=message) as raised:
        load(name, batch_size=2)
    assert "\n" not in str(raised.value)


def test_what_is_no_image_by_its_name_is_told(tmp_path):
    (folder(tmp_path) / "train" / "ant" / "IMG_1.HEIC").write_bytes(b"x")
    (tmp_path / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    with pytest.warns(UserWarning, match="1 files are no images by their names, and left out, as .*HEIC"):
        data.listed(f"images:{tmp_path}")


def test_paths_of_every_kind(tmp_path):
    root = folder(tmp_path / "ä [1] b\\c")
    assert load(f"images:{root}").num_train == 42
    assert load("images:/somewhere/else", data_dir=str(root)).num_train == 42


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_images_of_many_sizes_are_squares(tmp_path):
    folder(tmp_path)
    for i, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        Image.open(path).convert("RGB").resize((9 + i % 5, 12)).save(path)
    listed = data.listed(f"images:{tmp_path}")
    assert (listed.shape, listed.train.channels) == (None, 3)
    assert listed.sides(0) == (224, 224)
    assert load(f"images:{tmp_path}", image_size=16).example(1).input.shape == (1, 16, 16, 3)
    streamed = load(f"images:{tmp_path}", image_size=16, in_memory="no")
    assert type(streamed) is data.Streamed
    kept = load(f"images:{tmp_path}", image_size=16)
    for of in (streamed, kept):
        assert of.box(20, 30) == (0, 5, 20, 25), "without random parts, all of the middle is evaluated"
    seen = [jax.device_get(next(iter(of.test(ONE_DEVICE, 16)))[1]) for of in (streamed, kept)]
    np.testing.assert_array_equal(seen[0].image, seen[1].image[:16])
    np.testing.assert_allclose(streamed.treatment.mean, kept.treatment.mean, rtol=1e-6)
    apart = load(f"images:{tmp_path}", image_size=16, in_memory="no", workers=1)
    by_worker = jax.device_get(next(iter(apart.test(ONE_DEVICE, 16)))[1])
    np.testing.assert_array_equal(by_worker.image, seen[0].image)
    crops = load(f"images:{tmp_path}", image_size=16, in_memory="no", augment="crops")
    assert crops.box(256, 512) == (16, 144, 240, 368)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
@pytest.mark.parametrize("name", ["none", "shifts", "mild", "crops"])
def test_augmentation_is_a_choice_for_every_set(tmp_path, name, in_memory):
    folder(tmp_path)
    experiment = build(config(f"images:{tmp_path}", augment=name, in_memory=in_memory, seeds=1))
    dataset = experiment.dataset
    batches = [dataset.prepare(experiment.data_of(0), jax.random.key(i), train=True).pixels for i in range(2)]
    assert batches[0].shape == (8, 8, 8, 1)
    same = bool(np.array_equal(*batches))
    assert same == (name == "none")
    plain = {
        x.tobytes() for x in np.asarray(dataset.prepare(experiment.data_of(0), jax.random.key(0), train=False).pixels)
    }
    moved = {x.tobytes() for x in np.asarray(batches[0])}
    assert (moved == plain) == (name == "none")


def test_a_random_part_is_one_of_the_image():
    rows = np.broadcast_to(np.arange(0, 192, 4, dtype=np.uint8)[:, None, None], (64, 48, 48, 1))
    parts = np.asarray(augment.random_part(jax.numpy.asarray(rows), jax.random.key(0), 0.08)).astype(float)
    slope = (parts[:, 40, 24, 0] - parts[:, 8, 24, 0]) / 32 / 4  # rows of the image in a row of the part
    area = slope**2
    assert (parts.std(axis=2) == 0).all()
    assert 0.05 < area.min() < 0.2
    assert 0.7 < area.max() <= 1.1
    assert 0.35 < area.mean() < 0.65
    assert (parts[:, 8, 0, 0] > 4).mean() > 0.5, "parts begin anywhere"


def test_a_set_of_a_known_name_may_have_another_size():
    assert load("digits", image_size=12).example(1).input.shape == (1, 12, 12, 1)
    assert load("digits", image_size=8).fingerprint == load("digits").fingerprint


@pytest.mark.slow
def test_a_data_set_of_ones_own_may_have_any_name(tmp_path):
    """And no run is evaluated on another set than its own, be it of the same name."""
    rng = np.random.default_rng(0)
    split = data.Split(rng.integers(0, 256, (64, 8, 8, 1), np.uint8), np.arange(64) % 3)
    for name in ("mine", "digits"):
        mine = data.InMemory(data.Dataset(name, 10 if name == "digits" else 3, split, split))
        run = tmp_path / name
        train_and_evaluate(build(config(name), mine), run)
        with pytest.raises(UserError, match="unknown data set 'mine'" if name == "mine" else "holds other examples"):
            restore(run).with_data()
        assert restore(run).with_data(dataset=mine).experiment.dataset is mine


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.array([0.0, 1.0]), "labels .* of float64: give whole numbers"),
        (np.array([[0], [1]]), "give whole numbers"),
        (np.array([0, 2]), "labels 0 to 2: 2 classes count from 0"),
    ],
)
def test_labels_from_python_are_checked(label, message):
    split = data.Split(np.zeros((2, 4, 4, 1), np.uint8), label)
    with pytest.raises(ValueError, match=message):
        data.InMemory(data.Dataset("mine", 2, split, split))


def test_runs_of_before_go_on_as_they_were(tmp_path):
    """Their configs say whether the recipe augments, and a size that was of streamed sets alone."""
    train(digits(), tmp_path)
    path = tmp_path / "config.json"
    for augment_, expected in ((True, "recipe"), (False, "none"), (None, "recipe")):
        record = json.loads(path.read_text())
        for field in ("mean", "std", "split_seed", "in_memory"):
            record["config"].pop(field, None)
        record["config"].update(augment=augment_, image_size=224)
        if augment_ is None:  # before there was a choice
            del record["config"]["augment"]
        for field in ("classes", "fingerprint"):
            record["about"]["data"].pop(field, None)
        path.write_text(json.dumps(record))
        assert (load_config(tmp_path).augment, load_config(tmp_path).image_size) == (expected, 0)
        restore(tmp_path).with_data()
    record["config"]["augment"] = True
    path.write_text(json.dumps(record))
    assert train(digits(), tmp_path).about["train_examples"] == 1437


@pytest.mark.slow
@pytest.mark.parametrize("form", ["images", "csv", "arrays"])
def test_a_run_on_ones_own_data_by_programs(tmp_path, form):
    """Trained, moved, evaluated, exported, and asked of a photograph."""
    root = tmp_path / "own"
    made = {"images": folder, "csv": table, "arrays": lambda root: numbers(tmp_path / "own.npz")}[form](root)
    if form == "images":
        (next(made.glob("train/*")) / "notes.heic").touch()
    run = ("--config=experiments/configs/auglocal_digits.py:smoke", f"--workdir={tmp_path / 'run'}")
    changes = ("--config.batch_size=8", "--config.eval_batch_size=8", f"--config.dataset={form}:{made}")
    done = program("train", *run, *changes)
    assert done.returncode == 0, done.stderr
    assert (form == "images") == ("\nwarning: data set images:" in f"\n{done.stderr}")
    moved = made.parent / f"moved{made.suffix}" if form != "csv" else tmp_path / "moved" / made.name
    shutil.move(made if form != "csv" else root, moved if form != "csv" else moved.parent)
    workdir = f"--workdir={tmp_path / 'run'}"
    assert_one_line_error(program("evaluate", workdir), "there is no", "give the place where it is now")
    evaluated = program("evaluate", workdir, f"--data_dir={moved}")
    assert evaluated.returncode == 0, evaluated.stderr
    exported = program("export", workdir, f"--data_dir={moved}", f"--output={tmp_path / 'model'}")
    assert exported.returncode == 0, exported.stderr
    card = (tmp_path / "model" / "README.md").read_text()
    picture(3).save(tmp_path / "one.png")
    predicted = program("predict", workdir, str(tmp_path / "one.png"))
    assert predicted.returncode == 0, predicted.stderr
    line = json.loads(predicted.stdout)
    names = NAMES if form != "arrays" else ("0", "1", "2")
    assert line["name"] == names[line["class"]]
    assert set(line["probabilities"]) == set(names)
    assert all(name in card for name in names)


@pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is an extra")
@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_hugging_face_data_set(tmp_path, kind, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(NAMES))})
    rows = {"picture": [picture(i) for i in range(N)], "kind": [i % 3 for i in range(N)]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = datasets.Dataset.from_dict(rows, features=features)
        if kind == "arrow":
            whole.save_to_disk(str(tmp_path / "set"))
        else:
            (tmp_path / "set").mkdir()
            whole.to_parquet(str(tmp_path / "set" / "train.parquet"))
        dataset = load(f"hf:{tmp_path / 'set'}")
    assert (dataset.num_train, dataset.num_test, dataset.classes) == (48, 12, NAMES)
    found = {x.tobytes() for split in (dataset._train, dataset._test) for x in split.image}
    assert found == {DIGITS.train.image[i].tobytes() for i in range(N)}
