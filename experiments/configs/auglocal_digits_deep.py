"""AugLocal on digits in ten blocks of two narrow units, so deep that the memory of a step is activations."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.digits()
    config.model.features, config.model.strides = (16,) * 20, (1,) * 20
    config.cuts = "even:10"
    config.rule = ConfigDict({"name": "auglocal", "depth": 1, "tau": 0.5, "width": 0.5})
    config.batch_size = 128
    config.learning_rate = 0.1
    config.duration, config.eval_every = "20 epochs", "2 epochs"
    config.evidence = common.evidence(
        "auglocal_digits_deep.py",
        paper="Ma et al., ICLR 2024, arXiv 2402.17318; digits are not in the paper",
        expected="test error 3.33% on two cores, 1.67% on one (backprop 2.22, 3.33; seed 0); 0.41 of backprop's memory",
        run_time="a minute and a half on one CPU core that others share",
    )
    return common.finish(config, mode)
