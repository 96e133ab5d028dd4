"""What a network is asked for, and which rules can be asked."""

import jax.numpy as jnp
import pytest

from jaxlocal import Network, Task, cut_everywhere, losses, models, rules
from jaxlocal.rule import output
from tests.test_contract import NOPROP, ROWS


def test_a_task_asks_for_one_cross_entropy_unless_told_otherwise():
    assert Task(10) == Task(num_classes=10, loss=losses.cross_entropy, each=False)
    assert Task(10).once("greedy") == 10


KNOW_POSITIONS = {"backprop", "remat", "deep_supervision", "composite", "greedy", "dgl", "man", "shared"}
KNOW_POSITIONS |= {"lopt", "adapt", "dfa"}


@pytest.mark.parametrize("name", [name for name in ROWS if name not in KNOW_POSITIONS])
def test_rules_that_know_no_positions_refuse_a_task_that_has_them(name):
    units = NOPROP if name.startswith("noprop") else models.convnet((4,) * 5, (1,) * 5)
    rule = ROWS[name][0]
    with pytest.raises(ValueError, match=r"gives one answer an example; the task asks for one at every position"):
        rule(Network(units, cut_everywhere(units)), Task(10, each=True))


def test_the_tasks_loss_is_that_of_every_readout():
    def of_logits(logits, labels):
        return jnp.sum(logits, axis=-1) + labels.astype(logits.dtype)

    units = models.mlp((4, 4))
    network = Network(units, cut_everywhere(units))
    task = Task(3, of_logits)
    _, local = rules.greedy()(network, task)
    assert local.objectives[-1] is output(network, task)
    assert local.objectives[0] is local.objectives[-1] is not output(network, Task(3))
