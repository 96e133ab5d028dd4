"""AugLocal on CIFAR-10 with ResNet-32 cut into 16 units: the paper's recipe."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    """Returns the config; ``mode`` is empty or ``smoke``."""
    config = common.cifar10()
    config.rule = ConfigDict({"name": "auglocal", "depth": 2, "tau": 0.5})
    config.evidence = ConfigDict(
        {
            "paper": "Ma et al., ICLR 2024, arXiv 2402.17318, table 1 and appendix",
            "command": "python -m experiments.train --config=experiments/configs/auglocal_cifar10.py --workdir=DIR",
            "expected": "",
            "run_time": "",
        }
    )
    return common.finish(config, mode)
