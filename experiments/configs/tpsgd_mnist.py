"""tpSGD on MNIST: one hidden layer of 1000 units."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    """Returns the config; ``mode`` is empty or ``smoke``."""
    config = common.mnist()
    config.rule = ConfigDict({"name": "tpsgd", "distance": "squared", "bound": 3.0})
    config.evidence = common.evidence(
        "tpsgd_mnist.py",
        paper="arXiv 2208.08503; its networks and rates could not be read",
        expected="TODO",
        run_time="TODO",
    )
    return common.finish(config, mode)
