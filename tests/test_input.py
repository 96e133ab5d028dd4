"""Streamed data sets: what a step takes, whoever reads it, and runs on them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.app.errors import UserError
from experiments.cost.compiled import measure
from experiments.recipe.build import build
from experiments.training.checkpoint import Checkpoints
from jaxlocal import DataParallel, data
from jaxlocal.data.images import centre_box, random_box
from jaxlocal.executors import ONE_DEVICE
from tests import pictures
from tests.programs import ROOT, assert_one_line_error, program, train
from tests.test_programs import digits

TRAIN, VALIDATION = 40, 11
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Images of several formats, modes and sizes; a test split without labels."""
    kinds = [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "RGB"), ("PNG", "P")]
    sizes = [(24, 18), (17, 40), (8, 8)]
    images = [pictures.encoded(i, *kinds[i % 5], sizes[i % 3]) for i in range(TRAIN)]
    return pictures.write(
        tmp_path_factory.mktemp("tfds"), train=images, validation=images[:VALIDATION], test=images[:2]
    )


def streamed(directory, **options) -> data.Streamed:
    return data.Streamed(data.tfds_listed(pictures.NAME, directory), **{"image_size": 16, **options})


def steps(dataset, first=0, end=4, devices=ONE_DEVICE, seed=0, batch_size=8):
    return jax.device_get(list(dataset.train(devices, None, range(first, end), batch_size, [seed])))


over_workers = pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])


def which(batch: data.Decoded) -> np.ndarray:
    """The numbers of the images, from their pixels."""
    return np.round(batch.image.mean((-3, -2, -1)) / 4 - 0.12).astype(int)


def test_a_step_takes_its_examples(directory):
    dataset = streamed(directory)
    assert (dataset.num_train, dataset.num_test, dataset.task.num_classes) == (TRAIN, VALIDATION, pictures.CLASSES)
    epoch = steps(dataset, 0, 5)
    seen = np.concatenate([which(batch) for batch in epoch])
    assert sorted(seen) == list(range(TRAIN))
    np.testing.assert_array_equal(np.concatenate([batch.label for batch in epoch]), seen % pictures.CLASSES)
    for batch in epoch:
        assert (batch.image.shape, batch.image.dtype, batch.label.dtype) == ((8, 16, 16, 3), np.uint8, np.int32)
        assert (batch.image[..., :1] == batch.image).all(), "grey, whatever the mode"


@pytest.mark.slow
def test_a_step_is_the_same_whoever_reads_it_and_where_reading_began(directory):
    whole = steps(streamed(directory))
    chex.assert_trees_all_equal(steps(streamed(directory), 3), whole[3:])
    chex.assert_trees_all_equal(steps(streamed(directory, workers=2)), whole)
    other = steps(streamed(directory), seed=1)
    assert (which(other[0]) != which(whole[0])).any()
    assert steps(streamed(directory), 4, 4) == []


def test_an_example_is_cropped_anew_each_time(directory):
    dataset = streamed(directory)
    crops = {}
    for batch in steps(dataset, 0, 10):
        for index, image in zip(which(batch), batch.image, strict=True):
            crops.setdefault(index, []).append(image)
    assert sum((first != second).any() for first, second in crops.values()) > TRAIN // 2


class Host:
    """One of two processes, with two devices each."""

    def __init__(self, index: int) -> None:
        self.index = index

    devices = tuple(jax.devices()[:4])

    def positions(self, n: int) -> np.ndarray:
        return np.arange(n).reshape(4, -1)[2 * self.index : 2 * self.index + 2]

    def replicate(self, tree):
        return tree

    def spread(self, tree, axes):
        return tree


def test_two_processes_read_a_part_each(directory):
    dataset = streamed(directory)
    parts = [steps(dataset, 2, 4, Host(i)) for i in range(2)]
    assert parts[0][0].image.shape == (2, 2, 16, 16, 3)
    for whole, *of_hosts in zip(steps(dataset, 2, 4), *parts, strict=True):
        joined = jax.tree.map(lambda *x: np.concatenate(x).reshape(8, *x[0].shape[2:]), *of_hosts)
        chex.assert_trees_all_equal(joined, whole)


def test_what_another_process_takes_is_not_read(directory, monkeypatch):
    dataset = streamed(directory)
    monkeypatch.setattr(data.stream.Records, "read", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert steps(dataset, 0, 2)[1].image.shape == (8, 16, 16, 3)
    assert [chunk.label.shape for _, chunk in dataset.test(ONE_DEVICE, 8)] == [(8,), (3,)]


@pytest.mark.parametrize("devices", [ONE_DEVICE, DataParallel(jax.devices()[:4])], ids=["one", "four"])
@over_workers
def test_every_example_is_evaluated_once(directory, devices, workers):
    """Twelve of them are three for each of four devices; the last chunk does not split, and goes to all."""
    chunks = jax.device_get(list(streamed(directory, workers=workers).test(devices, 8)))
    assert [count for count, _ in chunks] == [8, 3]
    first, last = (chunk for _, chunk in chunks)
    shown = [first, last if devices is ONE_DEVICE else jax.tree.map(lambda x: x[0], last)]
    seen = np.concatenate([which(chunk).ravel() for chunk in shown])
    assert sorted(seen) == list(range(VALIDATION))
    assert [n for n, _ in streamed(directory, test_examples=5).test(ONE_DEVICE, 4)] == [4, 1]


def test_random_boxes():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(500, 375, rng) for _ in range(2000)])
    left, upper, right, lower = boxes.T
    w, h = right - left, lower - upper
    assert (left >= 0).all()
    assert (upper >= 0).all()
    assert right.max() == 500
    assert lower.max() == 375
    area, ratio = w * h / (500 * 375), w / h
    assert 0.075 < area.min() < 0.1
    assert area.max() > 0.95
    assert 0.4 < area.mean() < 0.46  # 0.54 of the tries; large ones often stick out
    assert 0.73 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.36
    again = np.random.default_rng(0)
    assert random_box(500, 375, again) == tuple(boxes[0])


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((1, 1), (0, 0, 1, 1))]
)
def test_an_image_that_no_box_fits(size, box):
    assert random_box(*size, np.random.default_rng(0)) == box


def test_the_centre_box():
    assert centre_box(256, 512) == (16, 144, 240, 368)


def config(directory, **changes):
    return digits(
        **{
            "dataset": pictures.NAME,
            "data_dir": str(directory),
            "image_size": 16,
            "batch_size": 8,
            "eval_batch_size": 8,
            "eval_examples": 0,
            "eval_every": "2 steps",
            "log_every": "1 steps",
            **changes,
        }
    )


def test_any_set_may_be_in_memory(directory):
    """Several seeds, and the recipe of sets that are streamed: random parts, flips, ImageNet's mean and deviation."""
    experiment = build(config(directory, in_memory="yes", seeds=2))
    dataset = experiment.dataset
    assert type(dataset) is data.InMemory
    assert dataset.treatment == data.augment.STREAMED
    assert (dataset.num_train, dataset.num_test, dataset.example(1).input.shape) == (TRAIN, VALIDATION, (1, 16, 16, 3))
    assert len(experiment.seeds) == 2
    assert build(config(directory, in_memory="yes")).dataset.fingerprint == dataset.fingerprint
    assert streamed(directory).fingerprint == streamed(directory, workers=1).fingerprint != dataset.fingerprint


def checkpoint(workdir, config):
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return jax.device_get(checkpoints.restore(4, build(config).init()).blocks)


@pytest.mark.slow
@pytest.mark.parametrize("data_parallel", [False, True])
def test_a_run_that_goes_on_ends_as_the_whole_one(directory, tmp_path, data_parallel):
    """On one device, with another number of workers, too."""
    c = config(directory, data_parallel=data_parallel)
    whole = train(c, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    again = train(config(directory, data_parallel=data_parallel, workers=int(not data_parallel)), tmp_path / "cut")
    assert again.history == whole.history
    chex.assert_trees_all_equal(*(checkpoint(tmp_path / name, c) for name in ("whole", "cut")))
    assert whole.about["train_examples"] == TRAIN


@pytest.mark.slow
def test_imagenet_by_mock(tmp_path):
    """One step on what stands in for ImageNet: 1000 classes, the split validation."""
    with tfds.testing.mock_data(as_data_source_fn=pictures.in_place_of_tfds):
        c = config("", dataset="imagenet2012", data_dir="", duration="1 steps", eval_every="1 steps")
        results = train(c, tmp_path)
    assert results.about["test_examples"] == 64
    assert np.isfinite(results.seeds[0][-1]["loss"])


@pytest.mark.slow
def test_a_plan_reads_no_example(directory, monkeypatch):
    c = config(directory, batch_size=32)  # large beside what an update does whatever the batch
    dataset = build(c).dataset
    monkeypatch.setattr(data.stream.Records, "read", lambda *_: pytest.fail("read"))
    plan = measure(build(c, dataset))
    batch = 32 * (16 * 16 * 3 + 4)
    assert plan.data == 0
    assert plan.cost.total > 3 * batch  # two more wait on the device
    parallel = measure(build(config(directory, batch_size=32, data_parallel=True), dataset))
    assert parallel.cost.flops == pytest.approx(plan.cost.flops, rel=0.1)


@over_workers
@pytest.mark.parametrize(("split", "index"), [("train", 7), ("validation", 1)])
def test_a_damaged_example_gets_one_line(tmp_path, workers, split, index):
    images = {"train": [pictures.encoded(i) for i in range(8)], "validation": [pictures.encoded(i) for i in range(2)]}
    whole = images[split][index]
    images[split] = [whole[: len(whole) // 2]] * len(images[split])
    pictures.write(tmp_path, **images)
    c = config(tmp_path, workers=workers, duration="1 steps", eval_every="1 steps")
    with pytest.raises(
        UserError, match=rf"^data set tiny_pictures, split {split}: example \d cannot be read"
    ) as raised:
        train(c, tmp_path / "run")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "imagenet2013"}, r"unknown data set 'imagenet2013': did you mean 'imagenet2012'\?"),
        ({"dataset": "a b"}, r"unknown data set 'a b': known are digits, .*those of TFDS"),
        ({"dataset": "imagenette/foo"}, r"data set 'imagenette/foo': of imagenette, TFDS knows full-size"),
        ({"dataset": "ag_news_subset"}, r"has the features .*: an image and its label are needed"),
        ({"dataset": "coco"}, r"data set 'coco': TFDS cannot describe it without TensorFlow"),
        ({"dataset": "imagenet2012"}, r"imagenet2012 is not prepared in .* as array_record: run `python -m .*prepare"),
        ({"seeds": 2}, r"tiny_pictures is streamed, for one seed"),
        ({"workers": -1}, r"image_size 16, workers -1, stages 0, split_seed 0: choose"),
        ({"image_size": -1}, r"image_size -1, workers 0, stages 0, split_seed 0: choose"),
        ({"batch_size": 41}, r"batch size 41 with 40 examples"),
    ],
)
def test_bad_configs_get_one_line(directory, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        build(config(directory, **changes))
    assert "\n" not in str(raised.value)


def test_a_set_whose_files_name_code_of_others_is_refused(tmp_path, monkeypatch):
    """TFDS would import it."""
    pictures.write(tmp_path, train=[pictures.encoded(0)], validation=[pictures.encoded(1)])
    build(config(tmp_path, batch_size=1))
    (path,) = tmp_path.rglob("features.json")
    path.write_text(path.read_text().replace("tensorflow_datasets.core.features.image_feature", "payload"))
    (tmp_path / "payload.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"features\.json names the class 'payload\.Image'"):
        build(config(tmp_path, batch_size=1))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))  # as TFDS_DATA_DIR has it
    with pytest.raises(UserError, match=r"features\.json names the class 'payload\.Image'"):
        build(config("", batch_size=1))


def test_a_set_without_a_split_to_evaluate(tmp_path):
    pictures.write(tmp_path, train=[pictures.encoded(0)])
    with pytest.raises(UserError, match=r"tiny_pictures has no split validation: it has train"):
        build(config(tmp_path))


def test_prepare_knows_all_sets(directory):
    done = program("prepare", f"--dataset={pictures.NAME}", f"--data_dir={directory}")
    assert done.stdout.startswith("tiny_pictures is ready")
    assert_one_line_error(program("prepare", "--dataset=imagenet2012"), "TensorFlow")
    assert_one_line_error(program("prepare", "--dataset=coco"), "without TensorFlow")
    assert_one_line_error(program("prepare", "--dataset=digits"), "no preparing")


@pytest.mark.slow
def test_evaluate_by_workers_leaves_no_warning(directory, tmp_path):
    train(config(directory, duration="1 steps", eval_every="1 steps", workers=1), tmp_path)
    done = program("evaluate", f"--workdir={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def started(directory, workdir) -> subprocess.Popen:
    """A run with workers, in a process group of its own, as a shell starts it."""
    flags = {"dataset": pictures.NAME, "data_dir": directory, "image_size": 16, "workers": 2, "duration": "5000 steps"}
    flags |= {"batch_size": 8, "eval_every": "5000 steps", "log_every": "1 steps"}
    command = [sys.executable, "-m", "experiments.train", "--config=experiments/configs/auglocal_digits.py:smoke"]
    command += [f"--config.{name}={value}" for name, value in flags.items()] + [f"--workdir={workdir}"]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def gone(pids: list[int]) -> bool:
    """Within a few seconds."""
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_run(directory, tmp_path, number):
    """Signals go to the whole group, as Ctrl-C and job schedulers send them; SIGKILL to the program alone."""
    with started(directory, tmp_path) as process:
        assert any(line.startswith("step 3/") for line in process.stdout)
        workers = children(process.pid)
        assert len(workers) >= 2
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        out, err = process.communicate()
    assert gone(workers)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert f"{number.name}: saving step" in out
        assert err == ""
        steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert (tmp_path / "checkpoints" / str(steps[-1])).is_dir()
