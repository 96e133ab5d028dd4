"""A network of five small units on real digits: what most tests train."""

from functools import cache
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxlocal import (
    Batch,
    Block,
    Executor,
    LocalRule,
    Network,
    Task,
    TrainState,
    cut_everywhere,
    data,
    freeze,
    fused,
    make_blocks,
    readout,
    through,
    weighted_sum,
)
from jaxlocal.feed import Feed
from jaxlocal.heads import Classifier, ConvMlp
from jaxlocal.models import convnet
from jaxlocal.rule import Rule

OPTIMIZER = optax.sgd(0.05, momentum=0.9, nesterov=True)


class Toy(NamedTuple):
    network: Network
    blocks: tuple[Block, ...]
    feed: Feed
    executor: Executor
    state: TrainState
    batch: Batch


@cache
def digits(n: int = 32) -> Batch:
    train = data.load("digits").train
    examples = data.Examples(jnp.asarray(train.image), jnp.asarray(train.label), jnp.arange(n, dtype=jnp.int32))
    return data.prepare_with(data.RECIPES["digits"])(examples, jax.random.key(0), train=False)


class Dropout(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.2, deterministic=not train)(x)


@cache
def composite() -> Rule:
    """A rule out of every combinator: dropout in front of one head, another head frozen."""

    def rule(network: Network, task: Task) -> tuple[Network, LocalRule]:
        objective = weighted_sum(
            dropped=(0.7, through(Dropout(), readout(Classifier(task.num_classes)))),
            frozen=(0.3, freeze(readout(ConvMlp(task.num_classes)))),
        )
        last = readout(Classifier(task.num_classes))
        return network, LocalRule((objective,) * len(network.cuts) + (last,))

    return rule


def on(units: tuple[nn.Module, ...], rule: Rule) -> Rule:
    """A rule for units of its own, whatever network it is given."""
    return lambda network, task: rule(Network(units, cut_everywhere(units)), task)


@cache
def _build(rule: Rule, seed: int, dtype) -> Toy:
    units = convnet((8, 8, 12, 12, 16), (1, 1, 2, 1, 2))
    network, local_rule = rule(Network(units, cut_everywhere(units)), Task(10))
    blocks = make_blocks(network, local_rule)
    batch = digits()
    executor = fused(blocks, local_rule.feed, OPTIMIZER, dtype=dtype)
    state = executor.init(jax.random.key(seed), jax.tree.map(lambda x: x[:1], batch))
    return Toy(network, blocks, local_rule.feed, executor, state, batch)


def make(rule: Rule, *, seed: int = 0, dtype=jnp.float32) -> Toy:
    """Built and compiled once per rule; the state is the caller's own, to be donated."""
    built = _build(rule, seed, dtype)
    return built._replace(state=copy(built.state))


def copy(state: TrainState) -> TrainState:
    """A step donates its state; tests that need it twice step a copy."""
    return jax.tree.map(jnp.copy, state)
