"""NoProp in discrete time on CIFAR-100: ten steps, one-hot embeddings."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.noprop("cifar100", classes=100)
    config.duration = "150 epochs"
    config.evidence = common.evidence(
        "noprop_cifar100.py",
        paper="Li et al. 2025, arXiv 2503.24322: test accuracy 45.93%, of backprop in the same network 45.85%",
        expected="not run at full length: it asks for a GPU",
        run_time="not measured",
    )
    return common.finish(config, mode)
