"""tpSGD on MNIST, read row by row: two recurrent layers."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.mnist()
    config.rule = ConfigDict({"name": "tpsgd", "distance": "squared", "bound": 3.0})
    config.model = ConfigDict({"name": "rnn", "features": (256, 256), "cell": "rnn"})
    config.duration = "3 epochs"
    config.evidence = common.evidence(
        "tpsgd_mnist_rnn.py",
        paper="arXiv 2208.08503; its networks and rates could not be read",
        expected="test error 4.60% (seed 0); backprop 2.59%",
        run_time="half a minute on 2 CPU cores",
    )
    return common.finish(config, mode)
