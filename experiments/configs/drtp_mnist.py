"""DRTP on MNIST: one hidden layer of 1000 units."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.mnist()
    config.rule = ConfigDict({"name": "drtp"})
    config.evidence = common.evidence(
        "drtp_mnist.py",
        paper="Frenkel et al. 2021, arXiv 1909.01311: 784-1000-10, test error 4.03%; backprop 1.76%",
        expected="test error 4.14% (seed 0)",
        run_time="half a minute on 2 CPU cores",
    )
    return common.finish(config, mode)
