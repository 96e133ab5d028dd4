"""AugLocal on SVHN: ResNet-32 in 16 units, the paper's recipe."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.cifar10()
    config.dataset = "svhn_cropped"
    config.rule = ConfigDict({"name": "auglocal", "depth": 2, "tau": 0.5})
    config.evidence = common.evidence(
        "auglocal_svhn.py",
        paper="Ma et al., ICLR 2024, arXiv 2402.17318, section 4.1 and appendix",
        expected="not run at full length yet",
        run_time="as auglocal_cifar10, times 73,257 / 50,000 examples",
    )
    return common.finish(config, mode)
