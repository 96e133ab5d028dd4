"""InfoPro on CIFAR-10, under the recipe of the AugLocal and MAN papers."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.cifar10()
    config.rule = ConfigDict(
        {"name": "infopro", "reconstruction": (5.0, 0.2), "label": (0.05, 0.5), "contrast": False, "width": 1.0}
    )
    config.evidence = common.evidence(
        "infopro_cifar10.py",
        paper="Wang et al., ICLR 2021, arXiv 2101.10832: ResNet-32, K=16, test error 14.23% (their recipe)",
        expected="not run at full length yet; one epoch: experiments/results/compare_cifar10_cpu.md",
        run_time="about 50 hours on 2 CPU cores, from the speed of one epoch",
    )
    return common.finish(config, mode)
