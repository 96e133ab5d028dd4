"""Weights of a GPT-2, whoever named and laid them out, compute what nanoGPT's code computed with them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from experiments.app.calls import as_call
from experiments.app.errors import UserError
from experiments.configs import common
from experiments.recipe.build import build
from experiments.reference import weights
from experiments.reference.names import value
from experiments.training.checkpoint import Checkpoints
from jaxlocal import Batch, models
from jaxlocal.block import run
from tests.programs import program

GOLDEN = Path(__file__).parent / "golden"
UNTIED, TIED = "gpt_bp", "gpt_bp_tied_bias"  # the second one with biases
DENSE = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
WTE, HEAD = "transformer.wte.weight", "lm_head.weight"


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tensors(of: dict) -> dict[str, np.ndarray]:
    """The file's, in float32; a tied unembedding is not listed."""
    named = {name: value(name, tuple(shape)).astype(np.float32) for name, shape in of["param_shapes"].items()}
    return {name: x for name, x in named.items() if not (of["tied"] and name == HEAD)}


def config_of(of: dict, tmp_path: Path, **model) -> ConfigDict:
    """The network of a golden file, on a text of as many characters."""
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(ord("0") + i) for i in range(of["vocabulary"])) * 20)
    config = common.shakespeare()
    fields = ("layers", "heads", "features", "context", "vocabulary", "bias")
    config.dataset = f"text:{path}"
    config.model = ConfigDict({"name": "gpt", **{field: of[field] for field in fields}, **model})
    config.rule = ConfigDict({"name": "backprop"})
    return config


def hugging_face(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As in ``model.safetensors`` of a GPT-2: no prefix, weights as ``[in, out]``, masks among them."""
    bare = {name.removeprefix("transformer."): x for name, x in named.items()}
    turned = {name: x.T if name.endswith(DENSE) else x for name, x in bare.items()}
    return turned | {"h.0.attn.bias": np.ones((1, 1, 16, 16)), "h.1.attn.masked_bias": np.array(-1e4)}


WAYS = {
    "as nanoGPT's code names them": lambda named: named,
    "compiled": lambda named: {f"_orig_mod.{name}": x for name, x in named.items()},
    "compiled, on several devices": lambda named: {f"module._orig_mod.{name}": x for name, x in named.items()},
    "with masks": lambda named: named | {"transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 16, 16), np.float32))},
    "Hugging Face's, bare": hugging_face,
    "Hugging Face's": lambda named: {
        name if name == HEAD else f"transformer.{name}": x for name, x in hugging_face(named).items()
    },
    "tied, twice": lambda named: named if HEAD in named else named | {HEAD: named[WTE]},
    "tied, under the other name": lambda named: (
        named if HEAD in named else {HEAD: named[WTE], **{name: x for name, x in named.items() if name != WTE}}
    ),
}


@pytest.mark.parametrize(
    ("name", "tied"), [(UNTIED, False), pytest.param(TIED, False, marks=pytest.mark.slow), (TIED, True)]
)
def test_scores_are_those_of_nanogpt(name, tied, tmp_path, monkeypatch):
    """In float32; the file's are of float64. GELU is exact in the file, so that by tanh is made exact here."""
    of = golden(name)
    rng = np.random.default_rng(of["seed"])
    tokens = jnp.asarray(rng.integers(0, of["vocabulary"], size=(of["batch"], of["context"])), jnp.int32)
    experiment = build(config_of(of, tmp_path, tied=tied))
    start = experiment.init()
    for way, change in WAYS.items():
        given = experiment
        if "Hugging" in way:
            with pytest.raises(UserError, match="GELU by tanh: give the model approximate=True"):
                weights.filled(experiment, start, weights.read(saved(change(tensors(of)), tmp_path)))
            given = build(config_of(of, tmp_path, approximate=True, tied=tied), experiment.dataset)
        state = weights.filled(given, start, weights.read(saved(change(tensors(of)), tmp_path)))
        (block,), (own,) = experiment.blocks, state.blocks  # with exact GELU, as the file
        _, out = run(block, own.variables, tokens, Batch(tokens, tokens), state.key, train=False, dtype=jnp.float32)
        expected = np.array(of["logits"])
        found = np.asarray(out.logits)[0, : expected.shape[0], : expected.shape[1]]
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), err_msg=way)
        np.testing.assert_allclose(np.linalg.norm(out.logits), of["logits_norm"], rtol=1e-5, err_msg=way)


def saved(named: dict[str, np.ndarray], tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in named.items()}, path)
    return path


@pytest.mark.parametrize(
    ("model", "change", "words"),
    [
        ({}, lambda named: named.pop("transformer.h.1.mlp.c_fc.weight"), r"no tensor 'transformer\.h\.1\.mlp\.c_fc\.w"),
        (
            {},
            lambda named: named.update(surplus=np.ones(1)),
            r"1 tensors that this network has not, as 'transformer\.s",
        ),
        ({}, lambda named: named.update({HEAD: np.ones((64, 32))}), r"tensor lm_head\.weight is of shape \(32, 64\)"),
        ({}, lambda named: named.update({WTE: np.ones(65)}), r"tensor transformer\.wte\.weight is of shape \(65,\)"),
        ({"bias": True}, lambda named: None, r"no tensor 'transformer\..*\.bias'"),
        ({"layers": 3}, lambda named: None, r"tensors that this network has not, as 'transformer\.h\.3\."),
        ({"rotary": True}, lambda named: None, r"1 tensors that this network has not, as 'transformer\.wpe\.weight'"),
        ({"tied": True}, lambda named: None, r"an unembedding that is not the embedding's table: untie"),
        ({"norm": "rms"}, lambda named: None, r"model\.norm rms: the norms of GPT-2 are of mean and deviation"),
        (
            {"gated": True},
            lambda named: None,
            r"model gpt, rule backprop: its tensors have no reference names \('gate'\)",
        ),
    ],
)
def test_weights_of_another_network_are_one_line(model, change, words, tmp_path):
    of = golden(UNTIED)
    experiment = build(config_of(of, tmp_path, **model))
    named = tensors(of)
    change(named)
    with pytest.raises(UserError, match=words):
        weights.filled(experiment, experiment.init(), named)


def test_gelu_by_tanh():
    """Hendrycks and Gimpel's second formula, as in GPT-2's code."""
    _, layer = models.gpt(layers=1, heads=1, features=8, approximate=True)
    x = 2 * jax.random.normal(jax.random.key(0), (1, 5, 8))
    variables = layer.init(jax.random.key(1), x, train=False)
    params = jax.tree.map(lambda x: 40 * x if x.ndim == 2 else x, variables["params"])
    params["projection"]["kernel"] = jnp.zeros((8, 8))  # no attention
    h = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    h = np.asarray(h @ params["hidden"]["kernel"])
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    found = layer.apply({"params": params}, x, train=False)
    np.testing.assert_allclose(found, x + gelu @ params["output"]["kernel"], rtol=1e-5, atol=1e-4)
    exact = models.gpt(layers=1, heads=1, features=8)[1].apply({"params": params}, x, train=False)
    assert np.abs(found - exact).max() > 1e-3
    with pytest.raises(ValueError, match="approximate is of GELU"):
        models.gpt(gated=True, approximate=True)


@pytest.mark.slow
def test_an_imported_run_writes(tmp_path):
    """From the file to a text, by the programs."""
    of = golden(TIED)
    config, workdir = config_of(of, tmp_path), tmp_path / "run"
    flags = ["--config=experiments/configs/backprop_shakespeare.py", f"--config.dataset={config.dataset}"]
    flags += [f"--weights={saved(tensors(of), tmp_path)}", f"--workdir={workdir}"]
    done = program("import_reference", *flags, f"--config.model={as_call(config.model)}")
    assert done.returncode == 0, done.stderr
    assert f"now python -m experiments.generate --prompt=TEXT --workdir={workdir}" in done.stdout
    assert Checkpoints(workdir, read_only=True).step("last") == 2000
    done = program("generate", f"--workdir={workdir}", "--prompt=0123", "--length=20", "--temperature=0")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 25
    assert set(done.stdout[:-1]) <= set((tmp_path / "text.txt").read_text())
