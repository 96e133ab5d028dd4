"""tpSGD on MNIST: one hidden layer of 1000 units."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.mnist()
    config.rule = ConfigDict({"name": "tpsgd", "distance": "squared", "bound": 3.0})
    config.evidence = common.evidence(
        "tpsgd_mnist.py",
        paper="arXiv 2208.08503; its networks and rates could not be read",
        expected="test error 3.99% (seed 0); backprop 1.59%",
        run_time="half a minute on 2 CPU cores",
    )
    return common.finish(config, mode)
