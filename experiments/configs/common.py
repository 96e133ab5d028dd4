"""What the configs share. A config file adds its model, its rule and its evidence."""

from ml_collections import ConfigDict


def digits() -> ConfigDict:
    """A convolutional network on scikit-learn's digits: a run of a minute on a laptop."""
    return ConfigDict(
        {
            "dataset": "digits",
            "data_dir": "",  # TFDS directory, "" for TFDS's default; or where one's own data are now, "" for as named
            "tokenizer": "",  # of texts: a tokenizer.json, by which text:PATH is read and tokens:DIR was written
            "eval_examples": 0,  # test examples to evaluate; 0 for all
            "split_seed": 0,  # of one's own data without a test split: which fifth of each class is to test
            "augment": "recipe",  # the data set's own; or crops (of 8% to 100%), mild (50%), shifts (2 pixels), none
            "mean": (),  # of each channel, in units of 1/255; () for the data set's
            "std": (),  # likewise
            "image_size": 0,  # side that images are scaled to; 0 for their own, 224 where they differ
            "in_memory": "auto",  # yes: images are decoded once; no: as steps need them; auto: once where they are few
            "workers": 0,  # where they are decoded as steps need them: processes that do; 0 for a thread of the program
            "model": {"name": "convnet", "features": (32, 32, 64, 64, 128, 128), "strides": (1, 1, 2, 1, 2, 1)},
            "start_from": "",  # workdir of a run whose units, and heads where they fit, are what training starts from
            "cuts": "all",  # all, even:K, balanced:K, auto:SIZE, or the first unit of each block, as 1,4,7
            "rule": {"name": "backprop"},
            "label_smoothing": 0.0,
            "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
            "schedule": "cosine",  # the papers', by epochs; or steps, likewise; or constant; or warmup_cosine, by steps
            "learning_rate": 0.05,
            "warmup_epochs": 2,
            "warmup_start": 0.01,
            "warmup_steps": 0,  # of warmup_cosine
            "learning_rate_end": 0.0,  # likewise
            "milestones": "",  # of steps: epochs after which the rate falls, as 50,75
            "decay": 0.1,  # of steps: what it is multiplied by
            "batch_size": 64,
            "accumulate": 1,  # batches whose mean gradient makes one update
            "eval_batch_size": 360,
            "duration": "12 epochs",
            "eval_every": "1 epochs",
            "log_every": "1 epochs",
            "wandb": "",  # a project of Weights & Biases that gets the metrics, too
            "on_divergence": "stop",  # or skip (the block's update alone), or rollback (to the last checkpoint)
            "dtype": "float32",
            "executor": "fused",  # fused, streamed, streamed+offload, pipelined
            "device": "",  # one that programs are compiled for and not run on, as h100 or v5e:4x4; "" for those here
            "stages": 0,  # of the pipelined executor, each on devices of its own; 0 for as many as there can be
            "data_parallel": False,  # every device takes its part of each batch
            "sync_batch_norm": False,  # statistics over all parts, as one device has them
            "seed": 0,
            "seeds": 1,  # runs trained together by vmap, of seeds seed, seed + 1, ...
            "evidence": {},
        }
    )


def mnist() -> ConfigDict:
    """MNIST as it is, without augmentation: Adam."""
    config = digits()
    config.dataset = "mnist"
    config.model = ConfigDict({"name": "mlp", "features": (1000,), "activation": "tanh"})
    config.optimizer = ConfigDict({"name": "adamw", "b1": 0.9, "b2": 0.999, "weight_decay": 0.0})
    config.learning_rate = 1e-3
    config.warmup_epochs = 0
    config.batch_size = 128
    config.eval_batch_size = 1000
    config.duration = "20 epochs"
    return config


def mnist_conv() -> ConfigDict:
    """The same for two convolutions and a dense layer: three epochs."""
    config = mnist()
    config.model = ConfigDict({"name": "lenet", "features": (32, 64), "dense": (1000,), "activation": "tanh"})
    config.duration = "3 epochs"
    return config


def noprop(dataset: str = "mnist", classes: int = 10) -> ConfigDict:
    """The recipe of the NoProp paper in discrete time: AdamW, batch 128, 100 epochs, no augmentation."""
    config = mnist()
    config.dataset = dataset
    config.augment = "none"
    config.model = ConfigDict(
        {
            "name": "noprop",
            "steps": 10,
            "classes": classes,
            "embedding": "one_hot",
            "features": 20,
            "width": 1.0,
            "dropout": 0.2,
        }
    )
    config.rule = ConfigDict({"name": "noprop_dt", "eta": 0.1, "offset": 0.008, "stochastic": False})
    config.optimizer.weight_decay = 1e-3
    config.executor = "streamed"  # the blocks of all steps but the last are one program
    config.schedule = "constant"
    config.duration = "100 epochs"
    return config


def cifar10() -> ConfigDict:
    """The recipe of the AugLocal and MAN papers for CIFAR-10: ResNet-32, 400 epochs, batch 1024."""
    config = digits()
    config.dataset = "cifar10"
    config.model = ConfigDict({"name": "resnet", "depth": 32, "width": 16})
    config.learning_rate = 0.8
    config.warmup_epochs = 10
    config.batch_size = 1024
    config.eval_batch_size = 1000
    config.duration = "400 epochs"
    config.eval_every = "5 epochs"
    config.log_every = "10 steps"
    return config


def stl10() -> ConfigDict:
    """The AugLocal paper's recipe for STL-10: as CIFAR-10's, with batch 128 and a rate of 0.1."""
    config = cifar10()
    config.dataset = "stl10"
    config.learning_rate = 0.1
    config.batch_size = 128
    config.eval_batch_size = 200
    return config


def imagenet() -> ConfigDict:
    """The AugLocal paper's recipe for ImageNet: ResNet-34, 200 epochs, batch 1024, no warm-up."""
    config = cifar10()
    config.dataset = "imagenet2012"
    config.workers = 8
    config.model = ConfigDict({"name": "imagenet_resnet", "depth": 34, "width": 64})
    config.learning_rate = 0.4
    config.warmup_epochs = 0
    config.eval_batch_size = 500
    config.duration = "200 epochs"
    return config


def shakespeare() -> ConfigDict:
    """NanoGPT's character model for CPUs: four layers, two thousand steps of twelve windows."""
    config = digits()
    config.dataset = "tinyshakespeare"
    config.model = ConfigDict(
        {
            "name": "gpt",
            "layers": 4,
            "heads": 4,
            "features": 128,
            "context": 64,
            "vocabulary": 65,
            "dropout": 0.0,
            "bias": False,
            "tied": False,
            "norm": "layer",  # or rms
            "gated": False,
            "rotary": False,
            "approximate": False,  # GELU by tanh, as the published GPT-2 has it
        }
    )
    config.optimizer = ConfigDict(
        {"name": "adamw", "b1": 0.9, "b2": 0.99, "weight_decay": 0.1, "matrices": True, "clip": 1.0}
    )
    config.schedule = "warmup_cosine"
    config.learning_rate, config.learning_rate_end, config.warmup_steps = 1e-3, 1e-4, 100
    config.batch_size = 12
    config.eval_batch_size = 64
    config.duration, config.eval_every, config.log_every = "2000 steps", "250 steps", "50 steps"
    return config


def cifar10_vit() -> ConfigDict:
    """A small vision transformer, and AdamW as Beyer et al. train a plain ViT: rate, clipping, warm-up and cosine."""
    config = cifar10()
    config.model = ConfigDict(
        {"name": "vit", "patch": 4, "layers": 6, "heads": 4, "features": 128, "bias": True, "dropout": 0.0}
    )
    config.optimizer = ConfigDict(
        {"name": "adamw", "b1": 0.9, "b2": 0.999, "weight_decay": 0.1, "matrices": True, "clip": 1.0}
    )
    config.schedule = "warmup_cosine"
    config.learning_rate, config.warmup_steps = 1e-3, 400
    config.batch_size = 128
    config.duration, config.eval_every, config.log_every = "100 epochs", "1 epochs", "50 steps"
    return config


def noise(side: int, classes: int, examples: int = 1024) -> ConfigDict:
    """A few steps on random images: to measure memory and speed at any size, not to learn."""
    config = cifar10()
    config.dataset = f"random_{side}_{classes}_{examples}"
    config.schedule = "constant"
    config.learning_rate = 0.05
    config.batch_size = 128
    config.eval_batch_size = 128
    config.duration = config.eval_every = config.log_every = "8 steps"
    return config


def evidence(file: str, *, paper: str, expected: str, run_time: str) -> ConfigDict:
    """Where a config comes from, how it is run, and what comes out."""
    command = f"python -m experiments.train --config=experiments/configs/{file} --workdir=DIR"
    return ConfigDict({"paper": paper, "command": command, "expected": expected, "run_time": run_time})


def finish(config: ConfigDict, mode: str) -> ConfigDict:
    """Applies the argument of ``--config=file.py:mode``: nothing, or ``smoke`` for a run of seconds.

    Raises:
      ValueError: if the mode is not known.
    """
    if mode == "smoke":
        config.duration = config.eval_every = "4 steps"
        config.log_every = "2 steps"
        config.schedule = "constant"
        config.learning_rate = min(config.learning_rate, 0.05)  # Adam's are lower
        config.batch_size = config.eval_batch_size = 32
        config.eval_examples = 100
        if config.model.name == "resnet":
            config.model.depth = 20
            config.model.width = 4
            config.cuts = "all"
        elif config.model.name == "noprop":
            config.model.steps = 3
            config.model.width = 0.25
        elif config.model.name == "imagenet_resnet":
            config.model.depth = 18
            config.model.width = 8
            config.image_size = 32
            config.workers = 0
        elif config.model.name == "vit":
            config.model.features = 16
    elif mode:
        raise ValueError(f"unknown mode {mode!r} of a config: use file.py or file.py:smoke")
    return config
