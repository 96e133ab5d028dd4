"""The character model of tiny Shakespeare in two blocks: a minute, half of nanoGPT's steps."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.shakespeare()
    config.rule = ConfigDict({"name": "greedy"})
    config.cuts = "3"
    config.duration = "1000 steps"
    config.evidence = common.evidence(
        "greedy_shakespeare.py",
        paper="Belilovsky et al., ICML 2019, on the model of Karpathy's nanoGPT, which is not in the paper",
        expected="EXPECTED",
        run_time="RUNTIME",
    )
    return common.finish(config, mode)
