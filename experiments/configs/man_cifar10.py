"""MAN around DGL on CIFAR-10: the paper's recipe."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.cifar10()
    config.rule = ConfigDict({"name": "man", "rule": {"name": "dgl", "width": 1.0}, "decay": 0.995})
    config.cuts = "2,3,4,5,6,7,8,9,10,11,12,13,14,15"  # the stem joined to the first unit, as in the paper
    config.evidence = common.evidence(
        "man_cifar10.py",
        paper="Su et al., ECCV 2024, arXiv 2407.05623, table 1: ResNet-32, K=16, test error 9.11% (DGL 14.08%)",
        expected="not run at full length yet; one epoch: experiments/results/compare_cifar10_cpu.md",
        run_time="about 60 hours on 2 CPU cores, from the speed of one epoch",
    )
    return common.finish(config, mode)
