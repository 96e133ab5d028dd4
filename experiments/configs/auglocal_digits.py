"""AugLocal on digits: six gradient-isolated units, four blocks, in about a minute."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    """Returns the config; ``mode`` is empty or ``smoke``."""
    config = common.digits()
    config.rule = ConfigDict({"name": "auglocal", "depth": 2, "tau": 0.5})
    config.evidence = ConfigDict(
        {
            "paper": "Ma et al., ICLR 2024; digits are not in the paper",
            "command": "python -m experiments.train --config=experiments/configs/auglocal_digits.py --workdir=DIR",
            "expected": "",
            "run_time": "",
        }
    )
    return common.finish(config, mode)
