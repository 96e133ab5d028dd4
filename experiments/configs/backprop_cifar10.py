"""Backpropagation on CIFAR-10 with ResNet-32: what the local rules are compared with."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.cifar10()
    config.evidence = common.evidence(
        "backprop_cifar10.py",
        paper="He et al., CVPR 2016, under the recipe of Ma et al., ICLR 2024",
        expected="test error 6.37% to 7.37% (papers of MAN and InfoPro); not reproduced at full length yet",
        run_time="not measured yet",
    )
    return common.finish(config, mode)
