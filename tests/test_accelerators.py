"""Devices that are not here: what is asked of them, and that programs for them are those of training.

Tests that compile for these are slow ones. A TPU's want libtpu (``make test-devices`` has it), a GPU's JAX's plugin.
"""

import dataclasses
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from ml_collections import FrozenConfigDict

from experiments.app.errors import UserError
from experiments.configs import common
from experiments.cost.compiled import bound, measure
from experiments.recipe.build import build
from experiments.recipe.devices import placements
from jaxlocal import Batch, Network, Task, make_blocks, models
from jaxlocal.executors import (
    ACCELERATORS,
    DataParallel,
    OneDevice,
    accelerators,
    cost_of,
    described,
    fused,
    pipelined,
    streamed,
)
from jaxlocal.executors.collectives import collectives
from jaxlocal.models.gpt import has_flash
from jaxlocal.target import compiling_for, target, traced_for
from jaxlocal.variables import nbytes
from tests import programs, toy
from tests.test_contract import ROWS


@pytest.fixture
def last_is_described(monkeypatch):
    """The last CPU device taken for one that is not here."""
    device = jax.devices()[-1]
    monkeypatch.setattr(accelerators, "_known", {device})
    return device


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h10", "choose v100, a100_40"),
        ("", "choose v100"),
        ("h100:4x4", "write several of these as h100:8"),
        ("v5e:4", "write several of these as v5e:2x2"),
        ("v5p:2x2", "write several of these as v5p:2x2x1"),
        ("h100:", "write several of these as h100:8"),
    ],
)
def test_a_device_that_is_none_is_named(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        described(text)


@pytest.mark.parametrize("name", ["h100", "v5e:4x4"])
def test_a_compiler_that_is_missing_is_named(name, monkeypatch):
    def missing(*args, **kwargs):
        raise NotImplementedError("topology not implemented")

    monkeypatch.setattr(accelerators.topologies, "get_topology_desc", missing)
    accelerators._topology.cache_clear()
    extra = "cuda" if name == "h100" else "tpu"
    with pytest.raises(ValueError, match=re.escape(f"pip install 'jaxlocal[{extra}]'")):
        described(name)


def test_every_accelerator_says_what_a_bound_needs():
    for name, of in ACCELERATORS.items():
        assert of.memory > 10**10, name
        assert of.bfloat16 >= of.float32 > 10**13, name
        assert of.bandwidth > 10**11, name


def test_what_is_traced_knows_its_device_and_nothing_within_any_does():
    first, last = jax.devices()[0], jax.devices()[-1]
    seen = []
    f = traced_for(last, lambda x: seen.append(target()) or x)
    assert target() == first
    jax.eval_shape(f, 1.0)
    with compiling_for(None):
        jax.eval_shape(f, 1)
        assert not has_flash(jnp.bfloat16, 64)
    assert seen == [last, None]
    assert target() == first


@pytest.mark.parametrize("name", ["greedy", pytest.param("man", marks=pytest.mark.slow)])
@pytest.mark.parametrize("executor", [fused, streamed])
def test_programs_for_a_described_device_are_those_of_training(name, executor, last_is_described):
    t = toy.make(ROWS[name][0])
    shapes = jax.eval_shape(lambda: (t.state, t.batch))

    def cost(placement):
        of = executor(t.blocks, t.feed, toy.OPTIMIZER, placement=placement)
        found = of.programs(*shapes)
        assert all(program.devices == placement.devices for program in found)
        return cost_of(found, len(t.batch.label))

    assert cost(OneDevice(last_is_described)) == cost(OneDevice(jax.devices()[0]))


def test_a_described_device_runs_nothing(last_is_described):
    t = toy.make(ROWS["greedy"][0])
    executor = fused(t.blocks, t.feed, toy.OPTIMIZER, placement=OneDevice(last_is_described))
    with pytest.raises(ValueError, match="only described here: programs are compiled for it, none can run"):
        executor.init(jax.random.key(0), t.batch)


def test_a_config_of_a_described_device_is_looked_at_and_not_trained(tmp_path, monkeypatch, last_is_described):
    monkeypatch.setattr("experiments.recipe.devices.described", lambda text: (last_is_described,))
    config = common.finish(common.digits(), "smoke")
    here = measure(build(config))
    config.device = "h100"
    there = measure(build(config))
    assert there.cost == here.cost
    assert bound(here.experiment, here.cost) is None
    seconds = here.cost.flops * config.batch_size / ACCELERATORS["h100"].float32
    assert bound(there.experiment, there.cost) == pytest.approx(seconds)
    with pytest.raises(UserError, match="device h100 is only described"):
        programs.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("program", ["train", "compare"])
def test_programs_that_run_refuse_it(program, tmp_path):
    config = "--config=experiments/configs/auglocal_digits.py:smoke"
    done = programs.program(program, config, "--config.device=h100", f"--workdir={tmp_path / 'run'}")
    programs.assert_one_line_error(done, "--config.device=h100: programs are compiled for it and cannot run")


@dataclasses.dataclass(frozen=True)
class Chip:
    """One of a pod of hosts with four each."""

    id: int

    @property
    def process_index(self) -> int:
        return self.id // 4


@pytest.fixture
def pod(monkeypatch):
    monkeypatch.setattr("experiments.recipe.devices.described", lambda text: tuple(map(Chip, range(16))))


@pytest.mark.parametrize("stages", [0, 2])
def test_a_described_grid_is_of_several_processes(stages, pod, monkeypatch):
    monkeypatch.setattr("experiments.recipe.devices.DataParallel", lambda devices, **_: [chip.id for chip in devices])
    config = common.finish(common.digits(), "smoke")
    config.device, config.data_parallel, config.stages = "v5e:4x4", True, stages
    config.executor = "pipelined" if stages else "fused"
    rows = placements(FrozenConfigDict(config), 6)
    if stages:  # each has some of every host
        assert rows == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    else:
        assert rows == [list(range(16))]


def test_stages_that_leave_out_hosts_are_refused(pod):
    config = common.finish(common.digits(), "smoke")
    config.device, config.executor = "v5e:4x4", "pipelined"
    with pytest.raises(UserError, match="2 of 4 processes would have none of the 6 stages"):
        placements(FrozenConfigDict(config), 6)


def test_collectives_are_counted_as_they_are_written():
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def summed(x):
        return jax.lax.psum(x, "data"), jax.lax.all_gather(x[:3], "data")

    mapped = jax.shard_map(
        summed, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec(), check_vma=False
    )
    text = jax.jit(mapped).lower(jnp.ones((40, 5))).compile().as_text()
    assert collectives(text) == {"all-reduce": 10 * 5 * 4, "all-gather": 4 * 3 * 5 * 4}
    begun = "%s = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%x)\n%d = bf16[32]{0} all-gather-done(%s)"
    assert collectives(begun) == {"all-gather": 64}


def test_a_data_parallel_step_sends_its_gradients():
    """Of MAN too: averages are of parameters that are alike everywhere."""
    t = toy.make(ROWS["greedy"][0])
    devices = jax.devices()
    executor = fused(t.blocks, t.feed, toy.OPTIMIZER, placement=DataParallel(devices, "shard_map"))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((4, len(x) // 4, *x.shape[1:]), x.dtype), t.batch)
    cost = cost_of(executor.programs(jax.eval_shape(lambda: t.state), batch), len(t.batch.label) // 4)
    params = sum(x.size * 4 for block in t.state.blocks for x in jax.tree.leaves(block.variables["params"]))
    assert params <= cost.sent <= 1.05 * params
    alone = toy.make(ROWS["greedy"][0]).executor.programs(t.state, t.batch)
    assert cost_of(alone, len(t.batch.label)).flops == pytest.approx(cost.flops, rel=0.02)


@pytest.fixture(scope="module")
def tpu():
    return described("v5e:2x2")


@pytest.fixture(scope="module")
def gpu():
    """Two H100, where their compiler is: JAX's plugin takes gigabytes, and so is no part of what CI installs."""
    try:
        return described("h100:2")
    except ValueError as error:
        if "its compiler is missing" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("executor", [fused, streamed])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("device", ["v5e", "h100"])
def test_every_rule_compiles_for(device, name, executor, dtype, request):
    placement = OneDevice(request.getfixturevalue("gpu" if device == "h100" else "tpu")[0])
    t = toy.make(ROWS[name][0])
    with jax.numpy_dtype_promotion("standard"):
        programs = executor(t.blocks, t.feed, toy.OPTIMIZER, dtype=dtype, placement=placement).programs(
            *jax.eval_shape(lambda: (t.state, t.batch))
        )
        cost = cost_of(programs, len(t.batch.label))
    assert cost.total >= nbytes(t.state)
    assert device == "h100" or cost.moved > nbytes(t.state)
    assert cost.flops == pytest.approx(_flops_here(t, executor, dtype), rel=1e-6)


def _flops_here(t, executor, dtype):
    with jax.numpy_dtype_promotion("standard"):
        programs = executor(t.blocks, t.feed, toy.OPTIMIZER, dtype=dtype).programs(t.state, t.batch)
        return sum(program.times * program.flops() for program in programs) / len(t.batch.label)


@pytest.mark.slow
@pytest.mark.devices
def test_blocks_keep_their_order_on_a_tpu(tpu):
    """In the schedule, all of a block's products stand before the next block's. A ResNet, in blocks of three units."""
    units = models.resnet(depth=20, width=16)
    rule = ROWS["dgl"][0]
    network, local = rule(Network(units, (1, 4, 7)), Task(10))
    blocks = make_blocks(network, local)
    executor = fused(blocks, local.feed, toy.OPTIMIZER, placement=OneDevice(tpu[0]))
    batch = Batch(jax.ShapeDtypeStruct((256, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((256,), jnp.int32))
    one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), batch)
    state = jax.eval_shape(lambda: executor.init(jax.random.key(0), one))
    (program,) = executor.programs(state, batch)
    entry = program.compile().as_text().split("ENTRY")[1]
    order = [int(k) for k in re.findall(r'(?:fusion|convolution)\(.*op_name="[^"]*block_(\d)[^"]*conv_general', entry)]
    assert set(order) == {0, 1, 2, 3}
    assert order == sorted(order)


@pytest.mark.slow
@pytest.mark.devices
def test_grids_of_tpus_compile_data_parallel_and_in_stages(tpu):
    t = toy.make(ROWS["man"][0])
    halves = [DataParallel(tpu[:2]), DataParallel(tpu[2:])]
    of_four, of_two = (
        jax.tree.map(lambda x, n=n: jax.ShapeDtypeStruct((n, len(x) // n, *x.shape[1:]), x.dtype), t.batch)
        for n in (4, 2)
    )
    state = jax.eval_shape(lambda: t.state)
    split = fused(t.blocks, t.feed, toy.OPTIMIZER, placement=DataParallel(tpu)).programs(state, of_four)
    params = sum(x.size * 4 for block in t.state.blocks for x in jax.tree.leaves(block.variables["params"]))
    assert 0.95 * params <= cost_of(split, 8).sent <= 1.1 * params
    staged = pipelined(t.blocks, t.feed, toy.OPTIMIZER, placements=halves, starts=(2,)).programs(state, of_two)
    assert [program.devices for program in staged] == [tpu[:2], tpu[2:]]
    chex.assert_tree_all_finite(jnp.array([cost_of(staged, 16).total, cost_of(staged, 16).moved]))


@pytest.mark.slow
@pytest.mark.devices
def test_gpus_compile_data_parallel(gpu):
    t = toy.make(ROWS["greedy"][0])
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, len(x) // 2, *x.shape[1:]), x.dtype), t.batch)
    programs = fused(t.blocks, t.feed, toy.OPTIMIZER, placement=DataParallel(gpu)).programs(
        jax.eval_shape(lambda: t.state), batch
    )
    params = sum(x.size * 4 for block in t.state.blocks for x in jax.tree.leaves(block.variables["params"]))
    assert params <= cost_of(programs, len(t.batch.label) // 2).sent <= 1.05 * params


def test_the_largest_batch_wants_a_memory(tmp_path):
    done = programs.program("memory", "--models=mlp", "--rules=greedy", "--largest", f"--workdir={tmp_path / 'x'}")
    programs.assert_one_line_error(done, "--largest: how much memory the device here has is not known")


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("plan", ("--model=mlp", "--rule=greedy")),
        ("memory", ("--models=mlp", "--rules=greedy")),
        ("show", ("--config=experiments/configs/auglocal_digits.py:smoke",)),
    ],
)
def test_programs_name_the_devices_that_there_are(program, flags, tmp_path):
    where = () if program != "memory" else (f"--workdir={tmp_path / 'memory'}",)
    programs.assert_one_line_error(programs.program(program, *flags, "--device=h10", *where), "h10", "choose v100")


@pytest.mark.slow
@pytest.mark.devices
def test_the_largest_batch_is_found(tmp_path):
    """Of a device that is described; of this machine's own, whose memory nobody tells, there is none."""
    run = ("--models=convnet(features=(4,8),strides=(2,2))", "--rules=dgl", "--batch_sizes=65536", "--executors=fused")
    done = programs.program("memory", *run, "--device=here,v5e:2x2", "--largest", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["numbers"]["largest"] for line in (tmp_path / "memory.jsonl").read_text().splitlines()]
    assert found[:2] == [None, None]
    assert all(n > 100_000 and n % 4 == 0 for n in found[2:])


@pytest.mark.slow
@pytest.mark.devices
def test_programs_tell_what_a_step_takes_there(tmp_path):
    done = programs.program(
        "memory",
        "--models=resnet(depth=8,width=4)",
        "--rules=dgl",
        "--batch_sizes=16",
        "--executors=fused",
        "--device=here,v5e:2x2",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "table.md").read_text()
    assert "on v5e:2x2" in table
    assert (tmp_path / "devices.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (tmp_path / "memory.jsonl").read_text().splitlines()]
    assert [(line["case"]["device"], line["case"]["rule"]) for line in lines] == [
        (device, rule) for device in ("", "v5e:2x2") for rule in ("backprop", "dgl")
    ]
    for title in ("GB moved", "MB sent", "ms at least"):
        assert title in table
    planned = programs.program(
        "plan",
        "--model=resnet(depth=8,width=4)",
        "--rule=greedy",
        "--batch_size=16",
        "--executor=fused",
        "--device=v5e",
    )
    assert planned.returncode == 0, planned.stderr
    assert "fits 16,384.0 MiB at batch size 16" in planned.stdout
