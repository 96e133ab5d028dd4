"""tpSGD trains adaptors of a network that knows MNIST, on MNIST turned by 45 degrees; the network itself is frozen.

The network is the one that ``tpsgd_mnist_conv.py`` trains into ``runs/tpsgd_mnist_conv``.
"""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.mnist_conv()
    config.dataset = "rotated_45_mnist"
    config.start_from = "" if mode == "smoke" else "runs/tpsgd_mnist_conv"
    config.rule = ConfigDict(
        {"name": "adapt", "adaptors": True, "rule": {"name": "tpsgd", "distance": "squared", "bound": 3.0}}
    )
    config.evidence = common.evidence(
        "tpsgd_mnist_adapt.py",
        paper="arXiv 2208.08503 names adaptors for domain shift as future work, without a recipe",
        expected="test error 6.98% (seed 0), from 54.8%",
        run_time="1.5 min on 2 CPU cores",
    )
    return common.finish(config, mode)
