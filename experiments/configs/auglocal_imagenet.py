"""AugLocal on ImageNet: ResNet-34 in 17 units, the paper's recipe."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.imagenet()
    config.rule = ConfigDict({"name": "auglocal", "depth": 2, "tau": 0.5})
    config.evidence = common.evidence(
        "auglocal_imagenet.py",
        paper="Ma et al., ICLR 2024, arXiv 2402.17318, section 4.1 and appendix: batch 1024, rate 0.4, 200 epochs",
        expected="not run; only its smoke form, on noise in place of ImageNet; heads are as deep as for CIFAR-10",
        run_time="not measured",
    )
    return common.finish(config, mode)
