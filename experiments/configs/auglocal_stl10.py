"""AugLocal on STL-10: ResNet-32 in 16 units at 96 pixels, the paper's recipe."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.stl10()
    config.rule = ConfigDict({"name": "auglocal", "depth": 2, "tau": 0.5})
    config.evidence = common.evidence(
        "auglocal_stl10.py",
        paper="Ma et al., ICLR 2024, arXiv 2402.17318, section 4.1 and appendix",
        expected="not run at full length yet",
        run_time="not measured yet",
    )
    return common.finish(config, mode)
