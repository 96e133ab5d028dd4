"""Random configs: each trains a step, or is refused in one line.

A few dozen in the suite; thousands by ``python -m tests.test_fuzz 2000``, where nothing but the programs checks types.
"""

import copy
import inspect
import sys
import traceback
from collections import Counter
from contextlib import closing
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from experiments.app.errors import UserError
from experiments.app.program import cache_compilations
from experiments.configs import common
from experiments.recipe.build import build
from experiments.recipe.registry import MODELS, OPTIMIZERS, RULES

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([float("nan"), float("inf"), -1.0, 0.0, 0.5, 1e30, 1e-30]),
    st.sampled_from(
        ["", "all", "even:0", "even:2", "balanced:3", "0 steps", "1e9", "next", "squared", "relu", "../x", "é"]
    ),
    st.lists(st.one_of(st.integers(-1, 4), st.floats(0, 1), st.just("8")), max_size=3).map(tuple),
    st.just({}),
    st.just({"name": "dgl"}),
)
ROOT = Path(__file__).parent.parent
TEXTS = (
    "tinyshakespeare",
    f"text:{ROOT}/README.md",
    f"bytes:{ROOT}/README.md",
    f"tokens:{ROOT}/tests",
    f"text:{ROOT}",
    "bytes:",
    "token:x",
    "digits",
)
IMAGES = (
    "random_8_3_16",
    "random_1_1_1",
    "random_0_2_9",
    "rotated_9_digits",
    "rotated_x_digits",
    "images:",
    f"images:{ROOT}",
    f"images:{ROOT}/docs",
    f"csv:{ROOT}/README.md",
    f"csv:{ROOT}",
    f"arrays:{ROOT}/README.md",
    "arrays:",
    "hf:/nonexistent",
)
SMALL = {  # of models that would be large; parameters are drawn beside these
    "convnet": {"features": (4, 4), "strides": (1, 2)},
    "gpt": {"layers": 2, "heads": 2, "features": 8, "context": 8},
    "imagenet_resnet": {"depth": 18, "width": 1},
    "lenet": {"features": (4,), "dense": (8,)},
    "mlp": {"features": (8, 8)},
    "noprop": {"steps": 2, "features": 4, "width": 0.1},
    "resnet": {"depth": 8, "width": 1},
    "resnext": {"depth": 50, "groups": 1, "group_width": 1, "width": 1},
    "rnn": {"features": (4, 4)},
    "vgg": {"depth": 8, "width": 1},
    "vit": {"layers": 2, "heads": 2, "features": 8},
}
TABLES = {"model": MODELS, "rule": RULES, "optimizer": OPTIMIZERS}
LIGHT = ("mlp", "mlp", "mlp", "convnet", "gpt", "lenet", "noprop", "rnn", "vit")


@st.composite
def specs(draw, kind: str, names: list[str]) -> dict:
    name = draw(st.sampled_from(names))
    spec = {"name": name, **(copy.copy(SMALL.get(name, {})) if kind == "model" else {})}
    if kind == "rule" and name in ("man", "remat", "deep_supervision", "adapt", "shared"):
        spec["rule"] = draw(specs("rule", names))
    known = [*inspect.signature(TABLES[kind][name]).parameters, "dept"]
    if draw(st.integers(0, 2)) == 1:
        spec[draw(st.sampled_from(known))] = draw(JUNK)
    if draw(st.integers(0, 49)) == 25:
        spec["name"] = draw(JUNK)
    return spec


@st.composite
def configs(draw) -> ConfigDict:
    config = common.digits().to_dict()
    config.update(schedule="constant", duration="2 steps", batch_size=8, eval_examples=8, eval_batch_size=8)
    models = LIGHT if draw(st.integers(0, 19)) else tuple(MODELS)
    config["model"] = draw(specs("model", list(models)))
    config["rule"] = draw(specs("rule", sorted(RULES)))
    if config["model"]["name"] == "gpt":
        config["dataset"] = draw(st.sampled_from(TEXTS))
        config["model"].setdefault("vocabulary", draw(st.sampled_from([65, 256])))
    if draw(st.booleans()):
        config["optimizer"] = draw(specs("optimizer", sorted(OPTIMIZERS)))
    if draw(st.integers(0, 2)) == 1:
        config[draw(st.sampled_from([*sorted(config), "lerning_rate"]))] = draw(JUNK)
    if draw(st.integers(0, 9)) == 5:
        config["dataset"] = draw(st.sampled_from(IMAGES))
        config["augment"] = draw(st.sampled_from(["recipe", "crops", "mild", "shifts", "none", "crop"]))
    if draw(st.integers(0, 49)) == 25:
        del config[draw(st.sampled_from(sorted(config)))]
    return ConfigDict(config)


def trained(config: ConfigDict) -> str:
    """What is said of a config that is refused; nothing of one that trains a step."""
    try:
        experiment = build(config)
        state = experiment.init()
    except UserError as error:
        return str(error)
    with jax.numpy_dtype_promotion("standard"), closing(experiment.batches(range(1))) as batches:
        jax.block_until_ready(experiment.executor.step(state, next(batches)))  # optax mixes integers and floats
    return ""


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs())
def test_a_config_trains_a_step_or_is_refused_in_one_line(config):
    assert "\n" not in trained(config)


def main(number: int) -> None:
    """Any number of them, and how many did what; what is neither trained nor refused is shown with its config."""
    cache_compilations()
    jax.config.update("jax_disable_most_optimizations", True)
    found: Counter[str] = Counter()

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(configs())
    def one(config: ConfigDict) -> None:
        try:
            said = trained(config)
        except Exception as error:
            place = [
                f
                for f in traceback.extract_tb(error.__traceback__)
                if "jaxlocal" in f.filename or "experiments" in f.filename
            ]
            where = f"{place[-1].filename}:{place[-1].lineno}" if place else ""
            found["traceback"] += 1
            print(f"{type(error).__name__} at {where}: {str(error)[:200]!r}\n  {config.to_dict()}", flush=True)
        else:
            found["refused" if said else "trained"] += 1
            assert "\n" not in said
        if sum(found.values()) % 100 == 0:
            print(dict(found), flush=True)

    one()
    print(dict(found))
    sys.exit(bool(found["traceback"]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
