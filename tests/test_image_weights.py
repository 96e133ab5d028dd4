"""Weights of torchvision's ResNets and timm's vision transformers: they compute what those libraries compute."""

import json
from pathlib import Path

import chex
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from experiments.app.calls import as_call, parse_call
from experiments.app.errors import UserError
from experiments.configs import common
from experiments.recipe.build import build
from experiments.reference import weights
from experiments.reference.names import golden_batch, value
from experiments.training.trained import restore, start_from
from jaxlocal import Batch
from jaxlocal.block import run
from jaxlocal.variables import pick
from tests.programs import program

GOLDEN = Path(__file__).parent / "golden"
VIT = {"name": "vit", "patch": 8, "layers": 2, "heads": 3, "features": 24, "bias": True, "epsilon": 1e-6}
MODELS = {
    "torchvision_resnet18": {"name": "imagenet_resnet", "depth": 18},
    "torchvision_resnet50": {"name": "imagenet_resnet"},
    "timm_vit_pooled": {**VIT, "pooled": True},
    "timm_vit_features": VIT,
}
SLOW = dict.fromkeys(("torchvision_resnet18", "torchvision_resnet50"), pytest.mark.slow)


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tensors(name: str) -> dict[str, np.ndarray]:
    return {k: value(k, tuple(shape)).astype(np.float32) for k, shape in golden(name)["param_shapes"].items()}


def config_of(name: str, rule: str = "backprop", classes: int = 10, side: int = 0, **model) -> ConfigDict:
    """Its network on noise of its size."""
    config = common.noise(side or golden(name)["image_size"], classes, 64)
    config.model, config.rule = ConfigDict({**MODELS[name], **model}), ConfigDict(parse_call(rule, "rule"))
    config.cuts, config.batch_size, config.eval_batch_size = "all", 16, 64
    return config


def outputs(experiment, state, name: str) -> tuple[jnp.ndarray, jnp.ndarray]:
    """What the last unit and the classifier put out for the golden batch."""
    of = golden(name)
    x = jnp.asarray(golden_batch(of["batch"], of["image_size"], of["seed"], of["dataset"])[0], jnp.float32)
    for block, own in zip(experiment.blocks, state.blocks, strict=True):
        x, out = run(block, own.variables, x, Batch(x, jnp.zeros(2, int)), state.key, train=False, dtype=jnp.float32)
    return x, out.logits


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in MODELS])
def test_scores_are_those_of_the_library(name):
    """In float32, of blocks and heads that it knows nothing of; the file's are of float64."""
    rule = "greedy" if name == "torchvision_resnet18" else "backprop"
    experiment, said = build(config_of(name, rule)), []
    start = experiment.init()
    state = weights.filled(experiment, start, tensors(name), said.append)
    features, logits = outputs(experiment, state, name)
    found = logits
    if name == "timm_vit_features":  # a model without a classifier puts out the mean behind the norm
        head = pick(state.blocks[-1].variables, "head")["params"]
        x = (features - features.mean(-1, keepdims=True)) / jnp.sqrt(features.var(-1, keepdims=True) + 1e-6)
        found = (x * head["norm"]["scale"] + head["norm"]["bias"]).mean((1, 2))
    expected = np.array(golden(name)["logits"])
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    of_heads = "the file has nothing of 8 auxiliary heads: they stay as they were initialised"
    of_classifier = "the classifier is not in the file: it stays as it was initialised"
    assert said == [of_heads] * (rule == "greedy") + [of_classifier] * (name == "timm_vit_features")
    for new, old in zip(state.blocks[:-1], start.blocks[:-1], strict=True):
        chex.assert_trees_all_equal(*(pick(block.variables, "head") for block in (new, old)))


def test_a_classifier_of_other_classes_is_left_out():
    name = "timm_vit_pooled"
    experiment, said = build(config_of(name, classes=4)), []
    start = experiment.init()
    state = weights.filled(experiment, start, tensors(name), said.append)
    assert said == ["the classifier is of 10 classes, random_32_4_64 has 4: it stays as it was initialised"]
    head, fresh = (pick(of.blocks[0].variables, "head")["params"] for of in (state, start))
    chex.assert_trees_all_equal(head["dense"], fresh["dense"])
    np.testing.assert_array_equal(head["norm"]["bias"], tensors(name)["fc_norm.bias"])


def test_a_file_may_be_of_bfloat16(tmp_path):
    name = "timm_vit_pooled"
    half = {k: x.astype(ml_dtypes.bfloat16) for k, x in tensors(name).items()}
    save_file(half, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **half)
    experiment = build(config_of(name))
    state = weights.filled(experiment, experiment.init(), weights.read(tmp_path / "a.safetensors"))
    unit = pick(state.blocks[0].variables, "unit_1")["params"]
    np.testing.assert_array_equal(unit["norm1"]["bias"], half["blocks.0.norm1.bias"].astype(np.float32))
    with pytest.raises(UserError, match=r"is of a dtype that \.npz cannot name: give a \.safetensors file"):
        weights.read(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("name", "options", "change", "words"),
    [
        (
            "timm_vit_pooled",
            {},
            {"cls_token": (1, 1, 24)},
            r"has a cls_token, and vit has patches alone: .*class_token=F",
        ),
        ("timm_vit_pooled", {"epsilon": 1e-5}, {}, r"give the model norm='layer', epsilon=1e-6"),
        (
            "timm_vit_pooled",
            {"pooled": False},
            {},
            r"last norm behind the mean of the patches: give the model pooled=True",
        ),
        ("timm_vit_features", {"pooled": True}, {}, r"last norm in front of the mean .*: give the model pooled=False"),
        (
            "timm_vit_pooled",
            {"patch": 4},
            {},
            r"positions of 16 patches, where images of 32x32 pixels in patches of 4x4",
        ),
        ("timm_vit_pooled", {"bias": False}, {}, r"1\d tensors that this network has not"),
        (
            "timm_vit_pooled",
            {},
            {"blocks.0.ls1.gamma": (24,)},
            r"1 tensors that this network has not, as 'blocks\.0\.ls1",
        ),
        ("timm_vit_pooled", {"layers": 3}, {}, r"has no tensor 'blocks\.2"),
        ("timm_vit_pooled", {"features": 48}, {}, r"is of shape .* another network's"),
        ("timm_vit_pooled", {}, {"head.bias": None}, r"has no tensor 'head\.bias'"),
        ("torchvision_resnet18", {"depth": 34}, {}, r"has no tensor 'layer\d\.\d\."),
        ("torchvision_resnet18", {"width": 32}, {}, r"tensor .* is of shape .* another network's"),
    ],
)
def test_weights_of_another_network_are_one_line(name, options, change, words):
    experiment, named = build(config_of(name, **options)), tensors(name)
    for key, shape in change.items():
        if shape is None:
            del named[key]
        else:
            named[key] = np.ones(shape, np.float32)
    with pytest.raises(UserError, match=words):
        weights.filled(experiment, experiment.init(), named, lambda line: None)


def test_other_models_have_no_names():
    config = common.finish(common.digits(), "smoke")
    experiment = build(config)
    with pytest.raises(UserError, match="model convnet: names of weights are known for resnet, imagenet_resnet, resn"):
        weights.filled(experiment, experiment.init(), {})


@pytest.mark.slow
def test_an_imported_run_is_what_another_starts_from(tmp_path):
    """By the programs: from a file of ten classes to a network in blocks on four."""
    name, workdir = "timm_vit_pooled", tmp_path / "imported"
    save_file(tensors(name), tmp_path / "a.safetensors")
    config = config_of(name, classes=4)
    flags = [
        "--config=experiments/configs/auglocal_vit_cifar10.py:smoke",
        f"--config.dataset={config.dataset}",
        f"--config.model={as_call(config.model)}",
    ]
    done = program(
        "import_reference",
        *flags,
        f"--weights={tmp_path / 'a.safetensors'}",
        f"--workdir={workdir}",
        "--config.rule=backprop",
    )
    assert done.returncode == 0, done.stderr
    assert "the classifier is of 10 classes" in done.stdout
    assert f"--config.start_from={workdir}" in done.stdout
    imported = restore(workdir)
    experiment = build(config_of(name, "greedy", classes=4))
    state = start_from(workdir, experiment, experiment.init())
    chex.assert_trees_all_equal(
        pick(state.blocks[1].variables, "unit_0"), pick(imported.state.blocks[0].variables, "unit_1")
    )
    done = program(
        "train", *flags, f"--workdir={tmp_path / 'tuned'}", f"--config.start_from={workdir}", "--config.rule=greedy"
    )
    assert done.returncode == 0, done.stderr
    assert f"started from {workdir}: 3 units, 1 of 3 heads" in done.stdout
