"""The documented command against the authors' numbers, and the table of reference names."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.reference import names
from tests.programs import assert_one_line_error, program

GOLDEN = Path(__file__).parent / "golden"
TENSORS = {
    "bp_resnet32": 167,
    "dgl_resnet32_k16": 572,
    "dgl_resnet32_k16_stl10": 572,
    "auglocal_resnet32_k16_d1": 446,
    "auglocal_resnet32_k16_d2": 538,
    "predsim_resnet32_k16": 212,
    "infopro_resnet32_k16": 422,
    "man_infopro_resnet32_k8": 282,
    "man_infopro_contrast_resnet32_k8": 282,
    "manpp_dgl_resnet32_k16": 563,
    "gpt_bp": 28,
    "gpt_bp_tied_bias": 40,
    "gpt_greedy_k3": 32,
    "gpt_auglocal_k3": 50,
}
# InfoPro's code restores the image by means and deviations rounded to float32, and is that far from ours.
ROUNDED = 2e-7
# jax.nn.dot_product_attention takes its scores in float32, whatever it is given.
ATTENTION = 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", TENSORS)
def test_agrees_with_the_authors_code(name):
    done = program("parity", f"--golden={GOLDEN / name}.json")
    result = json.loads(done.stdout)
    assert done.returncode == 0, result
    assert result["tensors"] == TENSORS[name]
    limit = ROUNDED if "infopro" in name else ATTENTION if "gpt" in name else 1e-10  # the program asks for 1e-6
    quantities = {"losses", "logits", "gradients"}
    if "gpt" not in name:
        quantities |= {"averages"} if "man" in name else {"running_statistics"}
    assert quantities <= result.keys()
    for quantity in quantities:
        assert 0 <= result[quantity] < limit


def altered(tmp_path, change, name: str = "bp_resnet32") -> str:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    change(golden)
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(golden))
    return f"--golden={path}"


@pytest.mark.slow
@pytest.mark.parametrize("quantity", ["losses", "logits", "gradients", "running_statistics"])
def test_notices_a_difference(tmp_path, quantity):
    def change(golden):
        if quantity == "losses":
            golden["final_loss"] *= 1 + 1e-5
        elif quantity == "logits":
            golden["logits"][3][2] += 1e-4
        else:
            table, name = {
                "gradients": (golden["grads"], "layer2.0.downsample.0.weight"),
                "running_statistics": (golden["running_after"], "layer3.4.bn2.running_var"),
            }[quantity]
            table[name]["probe"] += 1e-5 * table[name]["norm"]

    done = program("parity", altered(tmp_path, change))
    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert not result["ok"]
    assert [q for q in ("losses", "logits", "gradients", "running_statistics") if result[q] > 1e-6] == [quantity]


@pytest.mark.slow
@pytest.mark.parametrize("quantity", ["probe", "moved"])
def test_notices_a_difference_in_an_average(tmp_path, quantity):
    def change(golden):
        golden["ema_after"]["EMA_Net.3.conv1.weight"][quantity] *= 1 + 1e-4

    done = program("parity", altered(tmp_path, change, "man_infopro_resnet32_k8"))
    assert done.returncode == 1
    assert 1e-6 < json.loads(done.stdout)["averages"] < 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.update(rule="XYZ"), ["'XYZ'", "BP, DGL, AugLocal"]),
        (lambda g: g.pop("arch"), ["no field 'arch'"]),
        (lambda g: g.update(arch="resnet33"), ["6n + 2"]),
        (lambda g: g.update(arch="vgg19"), ["'vgg19'", "resnet32"]),
        (lambda g: g["state_shapes"].update({"conv1.weight": [16, 1, 3, 3]}), ["conv1.weight", "[16, 3, 3, 3]"]),
        pytest.param(
            lambda g: g["state_shapes"].update({"extra.weight": [1]}),
            ["one side only", "extra.weight"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_file_that_cannot_be_served(tmp_path, change, words):
    assert_one_line_error(program("parity", altered(tmp_path, change)), *words)


def test_no_file():
    assert_one_line_error(program("parity"), "--golden=FILE.json")
    assert_one_line_error(program("parity", "--golden=none.json"), "none.json")


@pytest.mark.parametrize(("shape", "reference_shape"), [((3, 3, 4, 5), (5, 4, 3, 3)), ((6, 7), (7, 6)), ((8,), (8,))])
def test_layouts_are_inverse(shape, reference_shape):
    x = np.random.default_rng(0).standard_normal(shape)
    there = names.to_reference(x)
    assert there.shape == reference_shape
    np.testing.assert_array_equal(names.from_reference(there), x)
