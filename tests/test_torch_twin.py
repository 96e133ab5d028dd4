"""The twins in PyTorch, against our own step on the same weights."""

import functools
import sys
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from experiments.app.errors import UserError
from experiments.reference.names import to_reference
from experiments.trials.cases import Case, built
from experiments.trials.torch_twin import has_twin, pytorch, steps, twin_of
from jaxlocal.executors.fused import train_step
from jaxlocal.objective import Batch
from jaxlocal.variables import size

ORDER = ("conv1", "bn1", "conv2", "bn2", "proj_conv", "proj_bn")  # of a residual unit; convolutions of a head, below
CASE = Case("resnet(depth=8,width=4)", 8, "float32", 16, 10, "backprop", "-", "fused", 1)
GPT = CASE._replace(model="gpt(layers=3,heads=2,features=16,context=8,vocabulary=11,bias=True)")
PLAIN = "gpt(layers=3,heads=2,features=16,context=8,vocabulary=11)"
ON_TOKENS = [
    GPT,
    CASE._replace(model=PLAIN, rule="greedy", cuts="2,3"),
    GPT._replace(rule="dgl(width=0.5)", cuts="2"),
    GPT._replace(rule="auglocal(depth=1)", cuts="1,2,3"),
    GPT._replace(rule="auglocal(depth=2)", cuts="1,2,3"),
]
CASES = [
    CASE,
    CASE._replace(rule="dgl(width=0.5)", cuts="all"),
    CASE._replace(rule="auglocal(depth=1)", cuts="all"),
    CASE._replace(model="resnet(depth=14,width=4)", rule="auglocal(depth=2)", cuts="all"),
]


def leaves(tree):
    """Arrays in the order in which PyTorch lists them: by the layers' place, weights before biases."""
    if not hasattr(tree, "items"):
        return [np.asarray(tree)]

    def place(name):
        known = ("unit_", "units_", *ORDER[:1], "conv1_bn", *ORDER[1:3], "conv2_bn", *ORDER[3:], "conv3", "conv3_bn")
        known += ("dense1", "dense1_bn", "dense2", "dense2_bn", "norm", "dense", "head", "kernel", "scale", "bias")
        return known.index(name.rstrip("0123456789") if name.startswith("unit") else name), name

    return [leaf for name in sorted(tree, key=place) for leaf in leaves(tree[name])]


needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is an extra")


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label())
def test_losses_are_ours(case):
    torch = pytorch()
    experiment = built(case)
    state = experiment.init()
    twin = twin_of(case, experiment.network, torch.channels_last)
    assert has_twin(case)
    assert twin.parameters == size([block.variables["params"] for block in state.blocks])
    modules = [torch.nn.ModuleList(pair) for pair in zip(twin.blocks, twin.heads, strict=True)]
    with torch.no_grad():
        for module, block in zip(modules, state.blocks, strict=True):
            for theirs, ours in zip(module.parameters(), leaves(block.variables["params"]), strict=True):
                theirs.copy_(torch.tensor(to_reference(ours)))
    rng = np.random.default_rng(0)
    image, label = rng.standard_normal((8, 16, 16, 3), np.float32), rng.integers(10, size=8, dtype=np.int32)
    losses = twin.step(torch.tensor(image.transpose(0, 3, 1, 2)), torch.tensor(label, dtype=torch.long))
    step = functools.partial(train_step, experiment.blocks, experiment.feed, experiment.optimizer)
    with jax.numpy_dtype_promotion("standard"):  # of the schedule's step
        _, metrics = jax.jit(step)(state, Batch(image, label))
    np.testing.assert_allclose(losses, [block["loss"] for block in metrics], rtol=1e-5)


def pairs(theirs, ours):
    """Parameters of ours in the order of theirs."""
    order = ("tokens", "positions", "norm1", "qkv", "projection", "norm2", "hidden", "output", "norm", "dense")
    order += ("unit_", "units_", "head", "layer", "kernel", "scale", "bias")

    def walk(tree):
        def place(name):
            return order.index(name.rstrip("0123456789") if name.startswith("unit") else name), name

        if not hasattr(tree, "items"):
            return [np.asarray(tree)]
        # a head of copies ends in an output, which is also what the last dense layer of a layer is called
        ends = [name for name in tree if name == "output" and any(other.startswith("units_") for other in tree)]
        names = sorted((name for name in tree if name not in ends), key=place) + ends
        return [leaf for name in names for leaf in walk(tree[name])]

    return zip(theirs, walk(ours), strict=True)


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("case", ON_TOKENS, ids=lambda case: case.label())
def test_losses_on_tokens_are_ours_before_and_after_an_update(case):
    torch = pytorch()
    experiment = built(case)
    state = experiment.init()
    twin = twin_of(case, experiment.network)
    assert has_twin(case)
    assert twin.parameters == size([block.variables["params"] for block in state.blocks])
    modules = [torch.nn.ModuleList(pair) for pair in zip(twin.blocks, twin.heads, strict=True)]
    with torch.no_grad():
        for module, block in zip(modules, state.blocks, strict=True):
            named = [(name, p) for name, p in module.named_parameters()]
            for (name, theirs), ours in pairs(named, block.variables["params"]):
                table = "tokens" in name or "positions" in name
                theirs.copy_(torch.tensor(ours if table or ours.ndim < 2 else ours.T))
    for group in (group for optimizer in twin.optimizers for group in optimizer.param_groups):
        group["lr"] = float(experiment.schedule(0))
    rng = np.random.default_rng(0)
    tokens, label = rng.integers(11, size=(2, 8, 8), dtype=np.int32)
    step = jax.jit(functools.partial(train_step, experiment.blocks, experiment.feed, experiment.optimizer))
    for _ in range(2):
        losses = twin.step(torch.tensor(tokens), torch.tensor(label, dtype=torch.long))
        with jax.numpy_dtype_promotion("standard"):
            state, metrics = step(state, Batch(tokens, label))
        np.testing.assert_allclose(losses, [block["loss"] for block in metrics], rtol=1e-5)


@needs_torch
def test_steps_on_tokens_take_time():
    experiment = built(GPT)
    parameters = size([b.variables["params"] for b in jax.eval_shape(experiment.init).blocks])
    (run,) = steps(GPT, experiment.network, parameters).values()
    assert 0 < run(1) < 60


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "bfloat16"},
        {"rule": "greedy"},
        {"executor": "streamed"},
        {"model": "vgg"},
        {"accumulate": 2},
        {"model": PLAIN.replace("gpt(", "gpt(rotary=True,")},
        {"model": PLAIN.replace("gpt(", "gpt(dropout=0.1,")},
        {"model": PLAIN, "rule": "greedy(tokens=2)"},
        {"model": PLAIN, "rule": "predsim"},
    ],
)
def test_what_has_no_twin(other):
    assert not has_twin(CASE._replace(**other))


@needs_torch
def test_another_number_of_parameters_is_an_error():
    experiment = built(CASE)
    with pytest.raises(ValueError, match="twin in PyTorch"):
        steps(CASE, experiment.network, 1)


@needs_torch
def test_steps_take_time():
    experiment = built(CASE)
    parameters = size([b.variables["params"] for b in jax.eval_shape(experiment.init).blocks])
    for run in steps(CASE, experiment.network, parameters).values():
        assert 0 < run(1) < 60


def test_without_pytorch_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'jaxlocal\[torch\]'"):
        pytorch()
