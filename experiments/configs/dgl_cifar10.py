"""Decoupled greedy learning on CIFAR-10: ResNet-32 in 16 units."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.cifar10()
    config.rule = ConfigDict({"name": "dgl", "width": 1.0})
    config.evidence = common.evidence(
        "dgl_cifar10.py",
        paper="Belilovsky et al., ICML 2020, under the recipe of Ma et al., ICLR 2024",
        expected="test error 14.08% to 16.21% (papers of MAN and InfoPro); not reproduced at full length yet",
        run_time="not measured yet",
    )
    return common.finish(config, mode)
