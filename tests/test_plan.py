"""Cuts that fit a memory budget: what is planned is what training compiles."""

import pytest
from ml_collections import ConfigDict

from experiments.app.calls import parse_call
from experiments.app.errors import UserError
from experiments.configs import common
from experiments.cost import search as searching
from experiments.cost.compiled import Measured, measure, unit_costs
from experiments.cost.search import DoesNotFitError, cutter_of, search, settled
from experiments.recipe.build import build
from experiments.recipe.fields import parse_memory
from jaxlocal import data
from jaxlocal.executors import MIB, cost_of
from tests.programs import assert_one_line_error, program

DATASET = data.InMemory(data.load("random_8_10_1024"))


def config_of(rule: str, **changes) -> ConfigDict:
    """Eight dense layers, narrow beside the batch: activations weigh more than the state, and compile at once."""
    config = common.noise(8, 10)
    config.model = ConfigDict({"name": "mlp", "features": (64,) * 8})
    config.rule = ConfigDict(parse_call(rule, "rule"))
    config.batch_size = 1024
    for field, value in changes.items():
        config[field] = value
    return config


@pytest.fixture(scope="module")
def plans() -> dict[float, Measured]:
    """By budget in MiB."""
    return {mib: search(config_of("greedy"), DATASET, round(mib * MIB), ["fused"]) for mib in (6, 4, 2.7)}


@pytest.mark.parametrize(
    ("text", "size"), [("6GiB", 6 * 2**30), ("512MiB", 2**29), ("800 KiB", 800 * 1024), ("1.5GiB", 3 * 2**29)]
)
def test_a_size_is_read(text, size):
    assert parse_memory(text, "memory") == size


@pytest.mark.parametrize("text", ["6 gigs", "6GB", "6", "-1GiB", "0MiB", "GiB", ""])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match=f"memory '{text}': write a size above zero in KiB, MiB"):
        parse_memory(text, "memory")


@pytest.mark.slow
def test_a_smaller_budget_takes_more_blocks(plans):
    assert [plan.cost.total <= mib * MIB for mib, plan in plans.items()] == [True] * 3
    one, few, more = (len(plan.cuts) + 1 for plan in plans.values())
    assert 1 == one < few < more


@pytest.mark.slow
def test_a_plan_is_the_step_that_training_compiles(plans):
    config = config_of("greedy", cuts=plans[4].experiment.config.cuts, executor=plans[4].experiment.config.executor)
    experiment = build(config, DATASET)
    assert experiment.network.cuts == plans[4].cuts
    state, examples = experiment.init(), experiment.data_of(0)
    assert cost_of(experiment.executor.programs(state, examples), 1024) == plans[4].cost


@pytest.mark.slow
def test_auto_finds_the_cuts_of_the_plan(plans):
    assert settled(config_of("greedy", cuts="auto:4MiB")).config == plans[4].experiment.config


def test_the_first_executor_that_fits_is_taken():
    budget = 8 * MIB  # enough for one block, by any
    for executors in (["fused", "streamed"], ["streamed+offload", "fused"]):
        plan = search(config_of("greedy"), DATASET, budget, executors)
        assert (plan.experiment.config.executor, plan.cuts) == (executors[0], ())


def test_a_streamed_plan_is_the_step_that_training_compiles():
    config = config_of("greedy", cuts="3", executor="streamed")
    experiment = build(config, DATASET)
    state, examples = experiment.init(), experiment.data_of(0)
    assert cost_of(experiment.executor.programs(state, examples), 1024) == measure(build(config, DATASET)).cost


@pytest.mark.parametrize(
    ("rule", "fewest", "given", "kept"),
    [
        ("auglocal(depth=2)", 2, (4, 6, 7), (4,)),
        ("man(auglocal(depth=1))", 2, (4, 7), (4,)),
        ("remat(auglocal(depth=2))", 2, (4, 6, 7), (4,)),
        ("man(dgl)", 1, (4,), (4,)),
        ("dgl", 1, (4,), (4,)),
    ],
)
def test_the_rule_is_given_the_cuts_that_it_drops(rule, fewest, given, kept):
    config = config_of(rule)
    cutter = cutter_of(config, DATASET)[1]
    assert cutter.fewest == fewest
    assert cutter.cut([1.0] * 8, 2) == given
    config.cuts = ",".join(map(str, given))
    assert build(config, DATASET).network.cuts == kept


def test_a_rule_of_one_block_is_given_all_cuts():
    assert cutter_of(config_of("deep_supervision(greedy)"), DATASET)[1].most == 1
    assert cutter_of(config_of("deep_supervision(greedy)"), DATASET)[1].cut([1.0] * 8, 1) == (1, 2, 3, 4, 5, 6, 7)


def test_blocks_are_balanced_by_what_was_measured():
    """Until something is known, units add up; then only a share of those beside the dearest does."""
    cutter = cutter_of(config_of("greedy"), DATASET)[1]
    costs = [3.0, *[2.0] * 7]
    assert cutter.cut(costs, 2) == (4,)  # 9 and 8
    cutter.correct((4,), 4.5)  # a quarter of what units beside the dearest take alone
    assert cutter.cut(costs, 2) == (3,)  # 4 and 4, not 4.5 and 3.5
    assert cutter.cut(costs, 8) == (1, 2, 3, 4, 5, 6, 7)


def test_units_have_the_heads_that_they_would_end_a_block_with():
    units = unit_costs(*cutter_of(config_of("auglocal(depth=2)"), DATASET))
    assert [unit.output for unit in units] == [(64,)] * 8
    assert all(unit.temporaries > 0 and unit.unit > 0 and unit.head > 0 for unit in units)
    assert units[0].head > 5 * units[-1].head  # two units and a classifier, and a classifier
    assert [unit.parameters for unit in units] == [2 * 65 * 64 + 65 * 10] * 5 + [65 * 10] * 3


@pytest.mark.slow
def test_an_impossible_budget_names_the_smallest_step():
    with pytest.raises(DoesNotFitError) as error:
        search(config_of("greedy"), DATASET, 100 * 1024, ["fused"])
    smallest = min(measure(build(config_of("greedy", cuts=cuts), DATASET)).cost.total for cuts in ("all", "even:1"))
    assert str(error.value).startswith(
        f"no cuts make greedy fit 0.1 MiB at batch size 1024: the smallest step found takes {smallest / MIB:,.1f} MiB, "
        "in 8 blocks by fused"
    )
    with pytest.raises(UserError, match="no cuts make greedy fit"):
        settled(config_of("greedy", cuts="auto:100KiB"))
    with pytest.raises(UserError, match="cuts=auto: '6 gigs': write a size"):
        settled(config_of("greedy", cuts="auto:6 gigs"))


MODEL = "mlp(features=(64,64,64,64,64,64,64,64))"
SMALL = (f"--model={MODEL}", "--rule=greedy", "--batch_size=1024", "--image=8", "--executor=fused")


@pytest.mark.slow
def test_the_program_halves_the_batch_where_nothing_fits():
    done = program("plan", *SMALL, "--memory=1.8MiB")
    assert done.returncode == 0, done.stderr
    assert "no cuts make greedy fit 1.8 MiB at batch size 1024: the smallest step found takes" in done.stdout
    assert "greedy fits 1.8 MiB at batch size 512, accumulate 2" in done.stdout
    *_, command = done.stdout.splitlines()
    assert command.startswith(f"python -m experiments.speed '--models={MODEL}' --rules=greedy --cuts=")


@pytest.mark.slow
def test_remat_is_shown_where_it_takes_fewer_blocks(monkeypatch):
    plain = {cuts: measure(build(config_of("greedy", cuts=cuts), DATASET)) for cuts in ("even:1", "2,4")}
    found = {cuts: measure(build(config_of("remat(greedy)", cuts=cuts), DATASET)) for cuts in ("even:1", "4", "2,4")}

    def shown(plan: str, remat: str):
        monkeypatch.setattr(searching, "search", lambda config, *_: found[remat] if "rule" in config.rule else None)
        return searching.with_remat(plain[plan], 2**30, ["fused"])

    assert shown("2,4", "4") == (found["4"],)
    assert shown("2,4", "2,4") == ()  # as many
    assert shown("2,4", "even:1") == ()  # that is remat(backprop)
    assert shown("even:1", "4") == ()
    assert searching.with_remat(found["2,4"], 2**30, ["fused"]) == ()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((*SMALL, "--memory=6 gigs"), ("--memory '6 gigs'", "as 6GiB")),
        ((*SMALL, "--memory=1GiB", "--model=resmet"), ("unknown model 'resmet'", "did you mean 'resnet'?")),
        (SMALL, ("--memory is needed",)),
        (("--memory=1GiB",), ("--model and --rule are needed",)),
    ],
)
def test_bad_input_ends_in_one_line(flags, words):
    assert_one_line_error(program("plan", *flags), *words)
