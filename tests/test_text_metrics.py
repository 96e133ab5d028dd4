"""What is said of language models: nats, bits, perplexity and accuracy at every exit, tokens a second."""

import json
import math
import re
from contextlib import closing

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.app.calls import parse_call, parse_calls
from experiments.app.errors import UserError
from experiments.configs import backprop_shakespeare, common
from experiments.pages import comparison, report
from experiments.pages.card import backbone, card
from experiments.recipe import noise
from experiments.recipe.build import build
from experiments.recipe.experiment import Experiment
from experiments.training.checkpoint import Checkpoints
from experiments.training.metrics import IMAGES, counted, exits_of, metrics_of, of_text, recorded
from experiments.training.results import side_by_side
from experiments.training.trained import restore
from experiments.training.workdir import load_record
from experiments.trials.cases import Case, built
from experiments.trials.combinations import combinations, settled_by
from jaxlocal import data
from jaxlocal.executors import Cost
from tests.programs import program, train

CHARACTERS = of_text("character", smoothed=False)
BLOCKS = [{"loss": 2 * math.log(2), "accuracy": 0.25}, {"loss": math.log(3), "accuracy": 0.5}]
DEEP = [{"loss": 9.0, "accuracy": 0.5, "exit_1": 2.0, "exit_1/accuracy": 0.25, "output": 1.0, "output/accuracy": 0.5}]


def tiny(rule: str, cuts: str = "all", **changes) -> ConfigDict:
    config = backprop_shakespeare.get_config("smoke")
    config.model.layers, config.model.heads, config.model.features, config.model.context = 3, 2, 8, 8
    config.rule, config.cuts, config.eval_examples = ConfigDict(parse_call(rule, "rule")), cuts, 40
    config.optimizer = common.digits().optimizer  # optax's Adam mixes integers and floats
    for field, value in changes.items():
        config[field] = value
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    return {
        name: (directory / name, train(tiny(rule, "2", seeds=seeds), directory / name))
        for name, rule, seeds in (("greedy", "greedy", 2), ("deep", "deep_supervision(greedy)", 1))
    }


def cells(table: str) -> list[dict[str, str]]:
    header, _, *rows = [[x.strip() for x in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_nats_bits_perplexity_and_accuracy_of_a_loss():
    nats, bits, perplexity, accuracy = (metric.at(BLOCKS) for metric in CHARACTERS.columns)
    assert nats == pytest.approx([2 * math.log(2), math.log(3)])
    assert bits == pytest.approx([2, math.log2(3)])
    assert perplexity == pytest.approx([4, 3])
    assert accuracy == pytest.approx([25, 50])


def test_exits_of_one_block_have_the_losses_of_their_terms():
    assert exits_of(DEEP) == [{"loss": 2.0, "accuracy": 0.25}, {"loss": 1.0, "accuracy": 0.5}]
    assert CHARACTERS.headline.at(DEEP) == [2.0, 1.0]


@pytest.mark.parametrize("rule", ["greedy(tokens=2)", "deep_supervision(greedy(tokens=2))"])
def test_a_head_that_tells_several_tokens_is_judged_by_the_next_one(rule):
    """Its loss is the mean over all that it tells."""
    experiment = build(tiny(rule, "2"))
    state = experiment.init()
    exits = exits_of(experiment.evaluate(state)[0])
    (block, *_) = experiment.evaluate(state)[0]
    assert exits[0]["loss"] == block["token_1" if "token_1" in block else "exit_1/token_1"]
    assert exits[0]["loss"] != block.get("exit_1", block["loss"])
    assert len(exits) == 2


@pytest.mark.parametrize(("said", "best"), [(CHARACTERS, 0), (IMAGES, 1)], ids=["text", "images"])
def test_the_best_checkpoint_is_best_by_the_number_that_is_compared(said, best, tmp_path):
    """At the last exit, mean over the seeds. Here the first has the lower loss, the second the higher accuracy."""
    experiment = build(tiny("backprop"))
    state = experiment.init()
    first = [{"loss": 1.0, "accuracy": 0.1}, {"loss": 1.5, "accuracy": 0.4}]
    second = [{"loss": 3.0, "accuracy": 0.3}, {"loss": 1.7, "accuracy": 0.5}]
    with closing(Checkpoints(tmp_path)) as checkpoints:
        for step, seeds in enumerate(([first, first], [first, second], [[*first, {"loss": 0.0}]]), 1):
            checkpoints.save(step, state, said.of_last(seeds))  # the last exit of the third predicts nothing
        assert (checkpoints.step("best"), checkpoints.step("last")) == (1 + best, 3)
    assert said.of_last([[*first, {"loss": math.nan, "accuracy": math.nan}]]) is None


def test_a_run_keeps_the_checkpoint_of_least_loss(tmp_path, monkeypatch):
    """A run whose accuracy rises while its loss does."""
    losses = iter([1.0, 2.0, 3.0])

    def evaluate(self, state):
        loss = next(losses)
        return [[{"loss": loss, "accuracy": loss / 10}]]

    monkeypatch.setattr(Experiment, "evaluate", evaluate)
    train(tiny("backprop", duration="3 steps", eval_every="1 steps"), tmp_path)
    assert (restore(tmp_path, "best").step, restore(tmp_path).step) == (1, 3)


def test_what_is_no_number_is_a_dash_and_what_is_too_large_is_infinite():
    nothing, diverged = {"loss": 1.0}, {"loss": math.nan, "accuracy": 0.0}
    shown = [[metric.said(x) for x in metric.at([nothing, diverged])] for metric in CHARACTERS.columns[:3]]
    assert shown == [["-", "-"]] * 3
    assert CHARACTERS.others[1].at([{"loss": 1e4, "accuracy": 0.0}]) == [math.inf]


def test_smoothed_labels_have_neither_bits_nor_a_perplexity():
    said = metrics_of(build(tiny("backprop", label_smoothing=0.1)))
    assert [metric.title for metric in said.columns] == ["nats per character, labels smoothed", "accuracy %"]
    assert said == of_text("character", smoothed=True)


def test_a_log_line_is_the_mean_of_what_the_seeds_have():
    other = [{"loss": 0.0, "accuracy": 0.75}] * 2
    assert CHARACTERS.lines([BLOCKS, other]).splitlines() == [
        "  nats per character  0.6931  0.5493",
        "  bits per character  1.0000  0.7925",
        "  perplexity           2.500   2.000",
        "  accuracy %           50.00   62.50",
    ]
    assert IMAGES.lines([[{"loss": 1.0}, {"loss": math.nan, "accuracy": 0.5}]]) == (
        "  loss       1.000   nan\n  accuracy %     -  50.0"
    )


def test_the_unit_is_the_data_sets(runs):
    directory, _ = runs["greedy"]
    record = load_record(directory)
    assert recorded(record["config"], record["about"]) is CHARACTERS
    assert recorded(record["config"], {"data": {"unit": "byte"}}) is of_text("byte", smoothed=False)
    assert recorded(common.digits().to_dict(), {}) is IMAGES
    experiment = build(tiny("backprop"))
    assert metrics_of(experiment) is CHARACTERS
    assert (counted(experiment, 3), counted(build(common.digits()), 3)) == (24, 3)


def test_a_run_records_losses_and_accuracies_alone_and_shows_the_rest(runs, capsys):
    directory, results = runs["greedy"]
    assert {name for line in results.history for name in line} == {
        *("step", "split", "seed", "epoch", "learning_rate", "accuracy", "loss")
    }
    rows = cells(repr(results))
    assert list(rows[0]) == [
        "exit",
        *("validation nats per character", "bits per character"),
        "perplexity",
        "accuracy %",
    ]
    losses = np.array([[exit["loss"] for exit in exits] for exits in results.seeds])
    for i, row in enumerate(rows):
        mean, deviation = row["validation nats per character"].split(" ± ")
        assert float(mean) == pytest.approx(losses[:, i].mean(), abs=1e-4)
        assert float(deviation) == pytest.approx(losses[:, i].std(ddof=1), abs=1e-4)
        assert float(row["perplexity"].split()[0]) == pytest.approx(np.exp(losses[:, i]).mean(), rel=1e-3)
    (ax,) = results.plot().axes
    assert (ax.get_ylabel(), ax.get_yscale()) == ("validation loss (nats per character)", "linear")
    train(tiny("greedy", "2", seeds=2), directory)  # shown again
    assert f"  nats per character {losses[:, 0].mean():7.4f}" in capsys.readouterr().out


def test_the_log_counts_tokens(tmp_path, capsys):
    train(tiny("backprop", log_every="1 steps"), tmp_path)
    assert re.findall(r"  ([\d,]+) tokens/s  ETA", capsys.readouterr().out)
    events = b"".join(path.read_bytes() for path in tmp_path.glob("events*"))
    assert b"train/tokens_per_second" in events
    assert b"images_per_second" not in events


def test_the_exits_of_deep_supervision_are_those_of_the_output_and_the_heads(runs):
    _, results = runs["deep"]
    (block,) = results.seeds[0]
    rows = cells(repr(results))
    assert [row["validation nats per character"] for row in rows] == [
        f"{block['exit_1']:.4f}",
        f"{block['output']:.4f}",
    ]
    assert block["loss"] == pytest.approx(block["exit_1"] + block["output"], rel=1e-5)
    (row,) = cells(side_by_side({"deep": results}))
    assert row["last exit, nats per character"] == f"{block['output']:.4f}"


def test_the_table_and_the_picture_of_a_comparison(runs, tmp_path):
    cost = Cost(1e6, 2**20, 2**21, 2**20)
    rows = {
        name: comparison.summarise([results], cost, cost._replace(total=2**23), 0.5)
        for name, (_, results) in runs.items()
    }
    greedy, deep = cells(comparison.table(rows))
    losses = [exits[-1]["loss"] for exits in runs["greedy"][1].seeds]
    assert greedy["last exit, nats per character"] == f"**{np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f}**"
    assert greedy["last exit, bits per character"].startswith(f"{np.mean(losses) / math.log(2):.4f} ± ")
    assert re.fullmatch(r"\d\.\d{4} \(exit [12]\)", deep["best exit, nats per character"])
    assert (greedy["memory MiB"], greedy["memory ÷ backprop's"], greedy["time ÷ backprop's"]) == ("2.0", "0.25", "0.50")
    (chosen, _) = cells(comparison.table(rows, ["time", "last"]))
    assert list(chosen) == ["rule", "time ÷ backprop's", "last exit, nats per character"]
    assert chosen["time ÷ backprop's"] == "0.50"
    np.testing.assert_allclose(rows["greedy"].curves, np.array(losses)[:, None], rtol=1e-6)
    rows |= {"greedy": rows["greedy"]._replace(memory=0.5), "backprop": rows["deep"]}
    of_greedy, of_deep = (f"{row['last exit, nats per character'].strip('*')}" for row in (greedy, deep))
    assert comparison.sentence(rows) == (
        f"Shown, in nats per character: greedy takes 0.50 of backprop's memory and 0.50 of its time and ends at "
        f"{of_greedy}; deep takes 0.25 of backprop's memory and 0.50 of its time and ends at {of_deep}; backprop ends "
        f"at {of_deep}. Not shown: which rule learns best, as this is one network at one batch size on one device, "
        "with 2 seeds."
    )
    comparison.picture(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_and_the_card(runs):
    directories = [directory for directory, _ in runs.values()]
    text = report.page(report.read(directories))
    assert "Validation loss at the last exit" in text
    assert "<th>last exit, nats per character</th>" in text
    assert "test error" not in text.lower()
    (block,) = runs["deep"][1].seeds[0]
    assert f"<td>{block['exit_1']:.4f}, {block['output']:.4f}</td>" in text
    trained = restore(directories[0]).with_data().one_seed()
    exits = trained.experiment.evaluate(trained.state)[0]
    written = card(trained, load_record(directories[0]), exits, backbone(trained))
    assert "windows of up to 8 tokens" in written
    assert cells(written)[-1]["validation nats per character"] == f"{exits[-1]['loss']:.4f}"


def test_runs_of_other_tasks_make_no_page_together(runs, tmp_path):
    train(common.finish(common.digits(), "smoke"), tmp_path)
    with pytest.raises(UserError, match=r"has test error %, .* has validation nats per character: make a page of each"):
        report.read([tmp_path, runs["greedy"][0]])


RULES = parse_calls("backprop,greedy,auglocal(depth=1)", "rules", {"name": "backprop"})


def test_rules_over_cuts_are_combinations_and_backprop_is_one(capsys):
    configs = combinations(tiny("backprop"), RULES, "2; 1,2")
    names = ["greedy@cuts=2", "greedy@cuts=1,2", "auglocal(depth=1)@cuts=2", "auglocal(depth=1)@cuts=1,2"]
    assert list(configs) == ["backprop", *names]
    found = settled_by(configs, over_cuts=True)
    assert {name: of.network.cuts for name, of in found.items()} == {
        "backprop": (),
        "greedy@cuts=2": (2,),
        "greedy@cuts=1,2": (1, 2),
        "auglocal(depth=1)@cuts=1,2": (1,),
    }
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("left out: auglocal(depth=1)@cuts=2: cuts and rule: auglocal: depth 1 merges")


@pytest.mark.parametrize(
    ("rules", "cuts", "words"),
    [
        ("greedy,auglocal(depth=3)", "2;1,2", r"auglocal\(depth=3\)@cuts=2: .* merges the last 4 of 2"),  # under all
        ("greedy,dgl", "2;evn:3", r"greedy@cuts=evn:3: cuts: 'evn:3' given"),  # of all rules
        ("greedy", "2;;3", "--cuts=2;;3: write each once"),
        ("greedy", "2;2", "--cuts=2;2: write each once"),
    ],
)
def test_cuts_and_rules_that_are_wrong_throughout_are_refused(rules, cuts, words):
    def settled():
        specs = parse_calls(rules, "rules", {"name": "backprop"})
        return settled_by(combinations(tiny("backprop"), specs, cuts), over_cuts=True)

    with pytest.raises(UserError, match=words):
        settled()


def test_without_cuts_the_names_are_the_rules():
    configs = combinations(tiny("backprop", "1,2"), RULES, None)
    assert list(configs) == list(RULES)
    assert {config.cuts for config in configs.values()} == {"1,2"}


@pytest.mark.slow
def test_compare_takes_over_what_train_made(tmp_path):
    """A run of the same config is not trained again; the table is of the text."""
    flags = ["--config=experiments/configs/backprop_shakespeare.py:smoke", "--config.model.layers=2"]
    flags += ["--config.model.features=8", "--config.model.context=8", "--config.eval_examples=20"]
    made = tmp_path / "greedy_cuts=1" / "seed_0"
    done = program("train", *flags, "--config.rule=greedy", "--config.cuts=1", f"--workdir={made}")
    assert done.returncode == 0, done.stderr
    before = (made / "metrics.jsonl").read_text()
    done = program("compare", *flags, "--rules=greedy,backprop", "--cuts=1;1,2", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert f"{made} is finished: at step 4 of 4" in done.stdout
    assert (made / "metrics.jsonl").read_text() == before
    assert "Validation loss on tinyshakespeare, gpt, 1 seed:" in done.stdout
    rows = cells((tmp_path / "table.md").read_text())
    assert [row["rule"] for row in rows] == ["greedy@cuts=1", "greedy@cuts=1,2", "backprop"]
    assert rows[0]["last exit, nats per character"] == f"**{json.loads(before.splitlines()[-1])['loss'][-1]:.4f}**"


GPT = "gpt(layers=2, heads=2, features=8, context=8, vocabulary=12)"


def test_a_language_model_is_measured_on_random_tokens():
    case = Case(GPT, 16, "float32", 32, 10, "greedy", "1", "fused", 1)
    assert case.group == f"{GPT}, windows of 8 tokens out of 12, batch 16, float32"
    experiment = built(case)
    assert experiment.dataset.task.num_classes == 12
    tokens = np.asarray(experiment.data_of(0).tokens)
    assert tokens.shape == (16, 9)
    assert len(np.unique(tokens)) == 12
    assert experiment.config.dataset == build(case.config()).config.dataset  # a process of its own finds it by name
    batch = noise.batch(experiment, 3)
    assert (batch.input.shape, batch.label.shape, batch.pixels) == ((3, 8), (3, 8), None)
    assert Case("mlp", 16, "float32", 8, 10, "greedy", "1", "fused", 1).group.startswith(
        "mlp, 8x8 images of 10 classes"
    )


@pytest.mark.parametrize("name", ["random_text_0_10", "random_text_20", "random_text_a_b"])
def test_noise_that_there_cannot_be(name):
    with pytest.raises(ValueError, match="write random_text_VOCABULARY_TOKENS"):
        data.Text(name, 2)


@pytest.mark.slow
def test_the_programs_that_measure_take_a_language_model(tmp_path):
    given = [f"--models={GPT},mlp(features=(8, 8))", "--rules=greedy", "--cuts=1", "--batch_sizes=16", "--image=8"]
    given += ["--executors=fused", f"--workdir={tmp_path}"]
    done = program("speed", *given, "--rounds=2", "--least=0.01")
    assert done.returncode == 0, done.stderr
    text, images = (cells(part) for part in (tmp_path / "table.md").read_text().split("## ")[1:])
    assert "tokens/s" in text[0]
    assert "img/s" not in text[0]
    assert "img/s" in images[0]
    lines = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert lines[0]["numbers"]["tokens_per_second"] == pytest.approx(16 * 8 / lines[0]["numbers"]["seconds"])
    done = program("memory", f"--models={GPT}", *given[1:])
    assert done.returncode == 0, done.stderr
    assert [row["blocks"] for row in cells((tmp_path / "table.md").read_text())] == ["1", "2"]


@pytest.mark.slow
def test_devices_share_the_tokens_of_a_language_model(tmp_path):
    given = [f"--model={GPT}", "--rule=greedy", "--devices=2", "--microbatches=2", "--batch_size=16", "--rounds=1"]
    given += ["--steps=1", "--simulate=4", "--bandwidth=1", f"--workdir={tmp_path}"]
    done = program("scaling", *given, JAX_NUM_CPU_DEVICES="2")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scaling.json").read_text())
    assert (found["rate"], found["counted"]) == ("tokens/s", 16 * 8)
    rows = cells((tmp_path / "table.md").read_text().split("Simulated")[0])
    assert [row["contender"] for row in rows if row["devices"] == "2"][-3:] == [
        *("greedy, 2 stages", "backprop, 2 stages", "backprop, 2 stages, 2 microbatches")
    ]
    assert float(rows[0]["tokens/s"].replace(",", "")) == pytest.approx(128 / found["measured"][0]["seconds"], rel=1e-2)


@pytest.mark.slow
def test_a_plan_for_a_language_model():
    shakespeare = ["--config=experiments/configs/backprop_shakespeare.py", "--config.model.layers=2"]
    done = program("plan", *shakespeare, "--config.rule=man(greedy)", "--memory=1GiB")
    assert done.returncode == 0, done.stderr
    assert "'--config.rule=man(greedy)'" in done.stdout.splitlines()[-1]
    done = program("plan", f"--model={GPT}", "--rule=greedy", "--batch_size=16", "--memory=1GiB")
    assert done.returncode == 0, done.stderr
    assert "--image" not in done.stdout.splitlines()[-1]
    done = program("show", *shakespeare, "--config.rule=greedy")
    assert done.returncode == 0, done.stderr
    assert "block 0 ends in LayerNorm [64x128] -> Scored [64x65]" in done.stdout


def test_the_smoke_form_learns_at_a_rate_of_its_kind():
    assert backprop_shakespeare.get_config("smoke").learning_rate == 1e-3
    assert common.finish(common.cifar10(), "smoke").learning_rate == 0.05
