"""In and out: an exported network is the trained one; predictions on files are those on arrays; weights of others."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save_file

from experiments.app.calls import parse_call
from experiments.app.errors import UserError
from experiments.configs import common
from experiments.pages import card
from experiments.recipe.build import build
from experiments.reference import weights
from experiments.reference.names import Layout, to_reference, value
from experiments.training import classify
from experiments.training.trained import Trained, restore
from jaxlocal import data
from jaxlocal.variables import pick, size
from tests.programs import assert_one_line_error, program, train


def smoke(rule: str, model: dict) -> ConfigDict:
    config = common.finish(common.digits(), "smoke")
    config.model, config.rule = ConfigDict(model), ConfigDict(parse_call(rule, "rule"))
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    train(smoke("greedy", {"name": "mlp", "features": (8, 8, 8)}), path)
    return path


@pytest.mark.slow
def test_an_exported_network_is_the_trained_one(workdir, tmp_path):
    done = program("export", f"--workdir={workdir}", f"--output={tmp_path / 'model'}")
    assert done.returncode == 0, done.stderr
    run = restore(workdir)
    parts = card.load(tmp_path / "model")
    assert parts.keys() == {"unit_0", "unit_1", "unit_2", "classifier"}  # and no auxiliary head
    for i, block in enumerate(run.state.blocks):
        jax.tree.map(np.testing.assert_array_equal, parts[f"unit_{i}"], pick(block.variables, "unit_0"))
    jax.tree.map(np.testing.assert_array_equal, parts["classifier"], pick(run.state.blocks[-1].variables, "head"))
    with ocp.StandardCheckpointer() as checkpointer:
        again = checkpointer.restore((tmp_path / "model" / "orbax").absolute(), parts)
    jax.tree.map(np.testing.assert_array_equal, parts, again)
    text = (tmp_path / "model" / "README.md").read_text()
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{100 * (1 - last['accuracy'][-1]):.2f}" in text
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dataset"] == "digits"
    assert_one_line_error(
        program("export", f"--workdir={workdir}", f"--output={tmp_path / 'model'}"), "is not an empty directory"
    )


@pytest.mark.parametrize("rule", ["tpsgd", "dfa", "deep_supervision(dgl)"])
def test_what_a_rule_wraps_around_the_network_is_left_out(rule):
    """Projections, feedback, isolation, taps and heads: the tensors are those of the plain network."""
    made = {}
    for name in (rule, "backprop"):
        config = smoke(name, {"name": "convnet", "features": (4, 4), "strides": (1, 2)})
        experiment = build(config)
        run = Trained(experiment, 0, experiment.init())
        made[name] = jax.tree.map(np.shape, card.backbone(run))
        counts = experiment.describe(run.state)["parameters"]
        assert sum(count["network"] for count in counts) == size([x["params"] for x in card.backbone(run).values()])
    assert made[rule] == made["backprop"]


def test_a_damaged_export_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no exported network in"):
        card.load(tmp_path)
    (tmp_path / card.WEIGHTS).write_bytes(b"\xff" * 20)
    with pytest.raises(UserError, match="no exported network in"):
        card.load(tmp_path)


def test_files_are_predicted_as_the_test_split_is(workdir, tmp_path):
    images = data.load("digits").test.image[:3]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[:, :, 0]).save(path)
    run = restore(workdir)
    exits = classify.predict(run, images)
    assert exits.shape == (3, 3, 10)
    np.testing.assert_allclose(exits.sum(-1), 1, atol=1e-5)
    done = program("predict", f"--workdir={workdir}", *map(str, paths))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["class"] for line in lines] == list(np.argmax(exits[-1], -1))
    assert [line["exits"] for line in lines] == np.argmax(exits, -1).T.tolist()
    (tmp_path / "damaged.png").write_bytes(paths[0].read_bytes()[:60])
    told = list(classify.lines(run, [str(tmp_path / "damaged.png"), *map(str, paths), str(tmp_path / "missing.png")]))
    assert told[1:-1] == lines
    assert all("cannot be read" in line["error"] for line in (told[0], told[-1]))


def test_a_file_that_cannot_be_read_is_told_beside_the_others(workdir, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no image")
    done = program("predict", f"--workdir={workdir}", str(tmp_path / "text.png"), str(tmp_path / "black.png"))
    assert_one_line_error(done, "1 of 2 files cannot be read, the first: image", "text.png")
    assert [set(json.loads(line)) >= {"image", "class"} for line in done.stdout.splitlines()] == [False, True]


def of_shape(*shape: int) -> data.InMemory:
    split = data.Split(np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32))
    return data.InMemory(data.Dataset("cifar10", 10, split, split))


def test_an_image_of_any_size_and_mode_is_fitted(tmp_path, monkeypatch):
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200  # the middle square
    Image.fromarray(wide).convert("RGBA").save(tmp_path / "wide.png")
    square = classify.read(tmp_path / "wide.png", of_shape(4, 4, 3))
    assert np.all(square[:, 1:3] == 200)
    assert np.all(square > 150)  # smoothed at the edge of the square
    assert classify.read(tmp_path / "wide.png", of_shape(5, 5, 1)).shape == (5, 5, 1)
    assert (
        classify.read(tmp_path / "wide.png", of_shape(5, 15, 3))[:, ::7].tolist() == [[[0] * 3, [200] * 3, [0] * 3]] * 5
    )
    (tmp_path / "text.png").write_text("no image")
    for name in ("text.png", "missing.png"):
        with pytest.raises(UserError, match=f"image .*{name}"):
            classify.read(tmp_path / name, of_shape(4, 4, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"image .*wide\.png cannot be read: more than 100 pixels"):
        classify.read(tmp_path / "wide.png", of_shape(4, 4, 3))


@pytest.mark.parametrize("rule", ["auglocal(depth=1)", "man(dgl)"])
def test_reference_weights_come_to_where_parity_puts_them(rule, tmp_path):
    """A file of the values that golden files mean by their names; each arrives under the name's path."""
    config = smoke(rule, {"name": "resnet", "depth": 8, "width": 4})
    experiment = build(config)
    state = experiment.init()
    layout, tensors, expected = Layout((1, 1, 1)), {}, []
    for i, (block, first) in enumerate(zip(state.blocks, (0, *experiment.network.cuts), strict=True)):
        n, last = len(experiment.blocks[i].units), i == len(state.blocks) - 1
        names = dict(layout.names(block.variables, i, first, n, is_last=last))
        for path, name in names.items():
            x = block.variables
            for key in path:
                x = x[key]
            tensors[name] = value(name, to_reference(np.asarray(x)).shape).astype(np.float32)
            expected.append((i, path, tensors[name]))
    counters = {"bn1.num_batches_tracked": np.zeros((), np.int64)}
    save_file(
        {f"module.{k}": np.ascontiguousarray(x) for k, x in (tensors | counters).items()}, tmp_path / "a.safetensors"
    )
    np.savez(tmp_path / "a.npz", **tensors)
    for path in (tmp_path / "a.safetensors", tmp_path / "a.npz"):
        read = weights.read(path)
        assert read.keys() == tensors.keys()
        new = weights.filled(experiment, state, read)
        for i, where, x in expected:
            found = new.blocks[i].variables
            for key in where:
                found = found[key]
            np.testing.assert_array_equal(to_reference(np.asarray(found)), x)
    with pytest.raises(UserError, match=r"has no tensor 'fc\.bias'"):
        weights.filled(experiment, state, {k: x for k, x in tensors.items() if k != "fc.bias"})
    with pytest.raises(UserError, match="1 tensors that this network has not, as 'surplus'"):
        weights.filled(experiment, state, {**tensors, "surplus": np.zeros(1)})
    with pytest.raises(UserError, match=r"tensor fc\.bias is of shape"):
        weights.filled(experiment, state, {**tensors, "fc.bias": np.zeros(3)})


def test_nothing_is_unpickled(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"give a \.safetensors or \.npz file"):
        weights.read(tmp_path / "a.pth")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    np.savez(tmp_path / "whole.npz", x=np.ones(100))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-50])
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for name in ("pickled", "cut", "array", "missing"):
        with pytest.raises(UserError, match="cannot be read"):
            weights.read(tmp_path / f"{name}.npz")
