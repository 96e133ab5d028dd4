"""AugLocal on CIFAR-10: ResNet-32 in 16 units, the paper's recipe."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.cifar10()
    config.rule = ConfigDict({"name": "auglocal", "depth": 2, "tau": 0.5, "width": 1.0})
    config.evidence = common.evidence(
        "auglocal_cifar10.py",
        paper="Ma et al., ICLR 2024, arXiv 2402.17318, section 4.1 and appendix",
        expected="not run at full length yet; 57.1% after 2 of 5 epochs at batch 128, see experiments/results",
        run_time="120 img/s on 2 CPU cores, about 47 hours",
    )
    return common.finish(config, mode)
