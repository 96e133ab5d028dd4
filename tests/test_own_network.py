"""A network of one's own, named by a config: trained, saved, restored, exported, in any dtype of parameters."""

import json
import os
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.app.calls import as_call, parse_calls
from experiments.app.errors import UserError
from experiments.configs import common
from experiments.pages import card
from experiments.recipe.build import build
from experiments.training.trained import restore, start_from
from jaxlocal.variables import pick
from tests.programs import ROOT, program, train

MODULE = '''
import flax.linen as nn
import jax.numpy as jnp
from flax import nnx

from jaxlocal.bridge import nnx_unit
from jaxlocal.sequential import units_of


def linen(features: int = 8, dtype: str = "float32"):
    """Three units."""
    dtype = jnp.dtype(dtype)
    layer = dict(kernel_size=(3, 3), strides=2, param_dtype=dtype)
    return units_of(
        nn.Sequential(
            [
                nn.Conv(features, **layer), nn.BatchNorm(param_dtype=dtype), nn.relu,
                nn.Conv(features, **layer), nn.relu, nn.Dropout(0.1),
                lambda x: x.mean((1, 2)), nn.Dense(8, param_dtype=dtype), nn.relu,
            ]
        )
    )


class Dense(nnx.Module):
    def __init__(self, in_features, features, dtype, *, rngs):
        self.dense = nnx.Linear(in_features, features, param_dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(features, param_dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.norm(self.dense(x))))


def of_nnx(features: int = 8, dtype: str = "float32"):
    """Three units."""
    return (nnx_unit(Dense, features=features, dtype=jnp.dtype(dtype)),) * 3


def a_list():
    return list(linen())


number = 3
'''


@pytest.fixture(scope="module", autouse=True)
def directory(tmp_path_factory):
    """On Python's path: where a user starts a program."""
    path = tmp_path_factory.mktemp("own")
    (path / "own_net.py").write_text(MODULE)
    (path / "broken_net.py").write_text("1 / 0")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        yield path


@pytest.fixture(autouse=True)
def _promotion():
    """Flax's layers mix their parameters' dtype with that of their input, as a program lets them."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def config_of(name: str, rule: str = "greedy", **model) -> ConfigDict:
    config = common.finish(common.digits(), "smoke")
    config.model, config.rule = ConfigDict({"name": name, **model}), ConfigDict({"name": rule})
    return config


@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float32", "float16"))]
)
@pytest.mark.parametrize("name", [pytest.param("own_net:linen", marks=pytest.mark.slow), "own_net:of_nnx"])
def test_a_run_of_it_is_restored_as_it_was(name, dtype, tmp_path):
    config = config_of(name, dtype=dtype)
    train(config, tmp_path / "run")
    run = restore(tmp_path / "run")
    of_units = [pick(block.variables, "unit_0")["params"] for block in run.state.blocks]
    assert {leaf.dtype for leaf in jax.tree.leaves(of_units)} == {jnp.dtype(dtype)}
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(of_units))
    again = run.with_data().experiment.evaluate(run.state)[0]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    np.testing.assert_allclose([block["accuracy"] for block in again], last["accuracy"], atol=1e-6)
    config.rule, config.start_from = ConfigDict({"name": "dgl"}), str(tmp_path / "run")  # another rule goes on from it
    experiment = build(config)
    new = start_from(tmp_path / "run", experiment, experiment.init())
    for one, other in zip(new.blocks, run.state.blocks, strict=True):
        chex.assert_trees_all_equal(*(pick(block.variables, "unit_0") for block in (one, other)))


@pytest.mark.slow
def test_programs_find_it(directory, tmp_path):
    """From where they are started, and what they write of bfloat16 is read back."""
    where, path = {"PYTHONPATH": f"{directory}{os.pathsep}{ROOT}"}, tmp_path / "run"
    config = config_of("own_net:linen", dtype="bfloat16")
    (directory / "own_config.py").write_text(
        "from experiments.configs import common\n"
        "def get_config(mode=''):\n"
        "    config = common.digits()\n"
        f"    config.model = {config.model.to_dict()!r}\n"
        "    config.rule = {'name': 'greedy'}\n"
        "    return common.finish(config, mode)\n"
    )
    for command in (
        ("train", f"--config={directory / 'own_config.py'}:smoke"),
        ("evaluate",),
        ("analyze",),
        ("export", f"--output={tmp_path / 'model'}"),
        ("report",),
    ):
        name, *flags = command
        flags = [f"--workdir={path}", *flags]
        done = program(name, *flags, **where)
        assert done.returncode == 0, f"{name}: {done.stderr}"
    parts, expected = card.load(tmp_path / "model"), card.backbone(restore(path))
    chex.assert_trees_all_equal_dtypes(parts, expected)
    chex.assert_trees_all_equal(parts, expected)


@pytest.mark.slow
def test_the_page_runs():
    namespace: dict = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_network.md").read_text(), re.DOTALL):
        exec(code, namespace)
    assert len(namespace["exits"]) == 4
    assert [len(unit.layers) for unit in namespace["units"]] == [3, 4, 4, 1]
    assert namespace["get_config"]("smoke").model.name == "mynet:network"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "own_net:missing",
            r"model 'own_net:missing' cannot be imported \(.*missing.*\): write package\.module:function",
        ),
        ("no_such_module:network", r"cannot be imported \(No module named 'no_such_module'\)"),
        ("broken_net:network", r"cannot be imported \(division by zero\)"),
        (":linen", "cannot be imported"),
        ("own_net:number", "model 'own_net:number' is a int: give a function"),
        ("own_net:a_list", r"model own_net:a_list returns a list: a tuple of units is expected"),
    ],
)
def test_what_is_no_network_is_one_line(name, words):
    with pytest.raises(UserError, match=words):
        build(config_of(name))


def test_rules_and_optimizers_are_named_likewise():
    config = config_of("own_net:linen", rule="jaxlocal.rules:greedy")
    config.optimizer.name = "jaxlocal.optimizers:sgd"
    assert len(build(config).blocks) == 3
    config.rule = ConfigDict({"name": "jaxlocal.rules:man", "rule": {"name": "dgl"}})
    assert len(build(config).blocks) == 3


def test_it_is_written_as_a_call():
    text = "man(a.b:rule(x=1), scale=True), mynet:network, dgl"
    calls = parse_calls(text, "rules")
    assert list(calls) == ["man(a.b:rule(x=1), scale=True)", "mynet:network", "dgl"]
    assert calls["mynet:network"] == {"name": "mynet:network"}
    assert calls["man(a.b:rule(x=1), scale=True)"] == {
        "name": "man",
        "rule": {"name": "a.b:rule", "x": 1},
        "scale": True,
    }
    assert as_call({"name": "a:b", "x": 1}) == "a:b(x=1)"


def test_parameters_are_checked():
    with pytest.raises(UserError, match=r"unknown parameter of model own_net:linen: 'depth'"):
        build(config_of("own_net:linen", depth=3))
