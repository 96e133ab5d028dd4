"""PredSim on MNIST: three layers of 1024 units, the recipe of its authors' code."""

from ml_collections import ConfigDict

from experiments.configs import common


def get_config(mode: str = "") -> ConfigDict:
    config = common.mnist()
    config.augment = "shifts"
    config.model = ConfigDict(
        {"name": "mlp", "features": (1024, 1024, 1024), "activation": "leaky_relu", "norm": True, "dropout": 0.1}
    )
    config.rule = ConfigDict({"name": "predsim", "similarity": 0.99, "prediction": 0.01, "zero": True, "last": True})
    config.schedule, config.milestones, config.decay = "steps", "50,75,89,94", 0.25
    config.learning_rate = 5e-4
    config.duration = "100 epochs"
    config.evidence = common.evidence(
        "predsim_mnist.py",
        paper="Nokland and Eidnes 2019, arXiv 1901.06656, its code: test error 0.62%, shifts by up to 2 pixels",
        expected="test error 2.65% (backprop 2.77%; seed 0) after 1 epoch at a constant rate, without shifts",
        run_time="about an hour on 2 CPU cores",
    )
    return common.finish(config, mode)
