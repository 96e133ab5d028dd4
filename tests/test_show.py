"""What is shown of a network is what training builds and compiles."""

import xml.etree.ElementTree as ET

import jax
import pytest
from ml_collections import ConfigDict

from experiments.app.calls import parse_call
from experiments.configs import common
from experiments.cost.compiled import block_costs, lowered_flops
from experiments.pages import network
from experiments.recipe.build import build
from tests.programs import assert_one_line_error, program


def digits(rule: str, **changes) -> ConfigDict:
    config = common.digits()
    config.rule = ConfigDict(parse_call(rule, "rule"))
    for field, value in changes.items():
        config[field] = value
    return config


def shown(rule: str, **changes) -> tuple[network.Shown, ...]:
    config = digits(rule, **changes)
    return network.blocks_of(build(config))


def kinds(block: network.Shown) -> list[list[str]]:
    return [[part.kind for part in chain] for chain in block.heads]


@pytest.mark.slow
def test_heads_name_the_units_they_copy():
    """Uniform selection on six units: a head on unit 0 copies units round(0 + 5 / 2) = 2 and 5."""
    blocks = shown("auglocal(depth=2)")
    assert [kinds(block) for block in blocks] == [
        [["ConvUnit of unit 2", "ConvUnit of unit 5", "Dense"]],
        [["ConvUnit of unit 3", "ConvUnit of unit 5", "Dense"]],
        [["ConvUnit of unit 4", "ConvUnit of unit 5", "Dense"]],
        [["Dense"]],
    ]
    assert [part.output for part in blocks[0].heads[0]] == ["4x4x64", "2x2x128", "10"]


@pytest.mark.slow
def test_the_head_under_man_stands_one_unit_further_on():
    momentum, head = kinds(shown("man(auglocal(depth=2))")[0])
    assert momentum == ["bias: unit 1", "average: unit 1"]
    assert head == ["ConvUnit of unit 3", "ConvUnit of unit 5", "Dense"]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["auglocal", "backprop", "man(infopro)", "deep_supervision(dgl)"])
def test_units_and_parameters_are_those_of_the_state(rule):
    config = digits(rule)
    experiment = build(config)
    blocks = network.blocks_of(experiment)
    counts = experiment.describe(jax.eval_shape(experiment.init))["parameters"]
    assert [block.head_parameters for block in blocks] == [count["head"] for count in counts]
    classifier = counts[-1]["network"] - sum(unit.parameters for unit in blocks[-1].units)
    assert 0 < classifier < 2000
    for block, count in zip(blocks[:-1], counts[:-1], strict=True):
        assert sum(unit.parameters for unit in block.units) == count["network"]
    assert tuple(block.first for block in blocks) == (0, *experiment.network.cuts)


@pytest.mark.slow
def test_the_blocks_add_up_to_the_step():
    """One way to measure: the blocks' computation is that of the step before it is compiled, but for the optimizer."""
    config = digits("auglocal")
    experiment = build(config)
    costs = block_costs(experiment)
    whole = lowered_flops(experiment)
    assert sum(block.units + block.head for block in costs) == pytest.approx(whole, rel=0.02)
    assert all(block.temporaries > 0 for block in costs)


@pytest.mark.slow
def test_seeds_trained_together_are_shown_as_one():
    assert shown("auglocal", seeds=3) == shown("auglocal")


@pytest.mark.slow
def test_the_program_prints_and_draws(tmp_path):
    svg = tmp_path / "pictures" / "network.svg"
    done = program("show", "--config=experiments/configs/auglocal_digits.py", f"--svg={svg}")
    assert done.returncode == 0, done.stderr
    assert "6 units in 4 blocks, cuts [1, 2, 3]" in done.stdout
    assert "block 0 ends in ConvUnit of unit 2 [4x4x64]" in done.stdout
    assert ET.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    done = program("show", "--config=experiments/configs/auglocal_digits.py", f"--svg={tmp_path / 'file' / 'a.svg'}")
    assert_one_line_error(done, "--svg=", "cannot be written")
    done = program("show", "--config=experiments/configs/auglocal_digits.py", f"--svg={tmp_path / 'a.docx'}")
    assert_one_line_error(done, "--svg=", "ends in .svg")
