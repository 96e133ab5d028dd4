"""nanoGPT's character model of tiny Shakespeare, as its README trains it on a CPU."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.shakespeare()
    config.rule = ConfigDict({"name": "backprop"})
    config.evidence = common.evidence(
        "backprop_shakespeare.py",
        paper="Karpathy, nanoGPT, config/train_shakespeare_char.py with the README's settings for a CPU",
        expected="validation loss 1.870 nats a character (seed 0; published 1.88)",
        run_time="3 minutes on 2 CPU cores",
    )
    return common.finish(config, mode)
