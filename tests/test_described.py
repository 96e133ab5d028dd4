"""A run is restored, and classifies, where its data set is not."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.recipe import build as building
from experiments.training.classify import predict
from experiments.training.loop import train_and_evaluate
from experiments.training.trained import restore
from jaxlocal import data
from jaxlocal.data.inputs import InMemory
from tests.programs import train
from tests.test_programs import digits


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("described") / "run"
    train(digits(model={"name": "mlp", "features": (16, 16)}, rule={"name": "greedy"}), path)
    return path


def test_an_image_is_classified_as_in_evaluation(workdir, monkeypatch):
    """Every exit is as often right on the test images as evaluation says."""
    dataset = data.load("digits")
    right = [block["accuracy"] for block in restore(workdir).with_data().experiment.evaluate(restore(workdir).state)[0]]

    def no(*given):
        raise AssertionError("a data set is loaded")

    monkeypatch.setattr(building, "load", no)
    image, label = (x[:100] for x in dataset.test)  # as many as the smoke form evaluates
    exits = predict(restore(workdir), image)
    np.testing.assert_allclose(np.mean(np.argmax(exits, -1) == label, axis=1), right, atol=1e-6)


def test_what_needs_examples_says_that_they_are_not_here(workdir, tmp_path):
    run = restore(workdir)
    with pytest.raises(ValueError, match="only its description"):
        run.experiment.evaluate(run.state)
    with pytest.raises(UserError, match="only its description"):
        train_and_evaluate(run.experiment, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_kind_that_cannot_be_described_is_loaded():
    class Own(InMemory):
        """Prepares images as it likes."""

    assert data.Described.of(Own(data.load("digits"))) is None
    described = data.Described.of(InMemory(data.load("rotated_30_digits")))
    assert (described.num_classes, described.shape, described.num_train) == (10, (8, 8, 1), 1437)
    assert described.box(20, 10) == (5, 0, 15, 10)


def damaged(change):
    def write(path):
        record = json.loads((path / "config.json").read_text())
        change(record)
        (path / "config.json").write_text(json.dumps(record))

    return write


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(about=None),
        lambda r: r.update(about=3),
        lambda r: r["about"].update(data=3),
        lambda r: r["about"].update(data=[1, 2]),
        lambda r: r["about"]["data"].pop("num_classes"),
        lambda r: r["about"]["data"].update(shape="881"),
        lambda r: r["about"]["data"].update(shape=[8, 8]),
        lambda r: r["about"]["data"].update(shape=["8", 8, 1]),
        lambda r: r["about"]["data"].update(shape=[8.0, 8, 1]),
        lambda r: r["about"]["data"].update(num_classes=-1),
        lambda r: r["about"]["data"].update(num_classes=[10]),
        lambda r: r["about"]["data"].update(num_test=10.5),
        lambda r: r["about"]["data"].update(std=[1, 2]),
        lambda r: r["about"]["data"].update(mean=["x"]),
        lambda r: r["about"]["data"].update(in_memory=1),
    ],
)
def test_a_damaged_description_is_one_line(change, workdir):
    intact = (workdir / "config.json").read_text()
    try:
        damaged(change)(workdir)
        with pytest.raises(UserError, match="is damaged"):
            restore(workdir)
    finally:
        (workdir / "config.json").write_text(intact)


def test_another_data_set_than_the_runs_is_refused(workdir):
    intact = (workdir / "config.json").read_text()
    try:
        damaged(lambda r: r["config"].update(dataset="random_8_10_100"))(workdir)
        run = restore(workdir)
        with pytest.raises(UserError, match=r"has 10 classes of \(8, 8, 3\), the run's had 10 of \(8, 8, 1\)"):
            run.with_data()
    finally:
        (workdir / "config.json").write_text(intact)


def test_a_run_of_before_loads_its_data_set(workdir):
    intact = (workdir / "config.json").read_text()
    try:
        damaged(lambda r: r["about"].pop("data"))(workdir)
        assert isinstance(restore(workdir).experiment.dataset, InMemory)
    finally:
        (workdir / "config.json").write_text(intact)


def test_a_seed_that_there_is_not_is_refused():
    experiment = building.build(digits(model={"name": "mlp", "features": (4,)}, rule={"name": "backprop"}))
    assert list(experiment.at_seed(2**32 - 1).seeds) == [2**32 - 1]
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match="choose 0 or more, below"):
            experiment.at_seed(seed)


def test_what_cannot_be_frozen_is_one_line():
    config = digits()
    config.rule = ConfigDict({"name": "dgl", "width": ({"a": 1},)})
    with pytest.raises(UserError):
        building.build(config)
