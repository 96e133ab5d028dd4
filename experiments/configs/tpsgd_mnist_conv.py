"""tpSGD on MNIST: two convolutions and a dense layer."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.mnist_conv()
    config.rule = ConfigDict({"name": "tpsgd", "distance": "squared", "bound": 3.0})
    config.evidence = common.evidence(
        "tpsgd_mnist_conv.py",
        paper="arXiv 2208.08503; its networks and rates could not be read",
        expected="test error 2.84% (seed 0); backprop 1.11%",
        run_time="2 min on 2 CPU cores",
    )
    return common.finish(config, mode)
