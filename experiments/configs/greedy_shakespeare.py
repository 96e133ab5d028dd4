"""The character model of tiny Shakespeare in two blocks: a minute on two cores."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.shakespeare()
    config.rule = ConfigDict({"name": "greedy"})
    config.cuts = "3"
    config.duration = "800 steps"
    config.evidence = common.evidence(
        "greedy_shakespeare.py",
        paper="Belilovsky et al., ICML 2019; the model is nanoGPT's, which is not in the paper",
        expected="2.134 nats per character at the last exit (seed 0)",
        run_time="three minutes on 2 CPU cores that others share",
    )
    return common.finish(config, mode)
