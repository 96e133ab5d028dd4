"""InfoPro's weights and heads."""

import jax
import numpy as np
import pytest

from jaxlocal import Network, Task, cut_everywhere, make_blocks, models, rules
from jaxlocal.rules.infopro import weights
from tests import toy


def test_weights_are_linear_over_the_heads():
    np.testing.assert_allclose(weights((5.0, 0.2), 15)[:2], [5.0, 4.657142857])  # the authors' first two
    assert weights((5.0, 0.2), 15)[-1] == pytest.approx(0.2)
    assert weights((5.0, 0.2), 1) == (5.0,)
    assert weights((1.0, 2.0, 4.0), 3) == (1.0, 2.0, 4.0)


def test_the_losses_are_weighted():
    plain = toy.make(rules.infopro((1.0, 1.0), (0.0, 0.0)))
    _, metrics = plain.executor.step(plain.state, plain.batch)
    for block in metrics[:-1]:
        assert float(block["loss"]) == pytest.approx(float(block["reconstruction"]), rel=1e-5)


def test_classifiers_halve_the_resolution_while_a_later_stage_does():
    units = models.resnet(8)
    network, local_rule = rules.infopro()(Network(units, cut_everywhere(units)), Task(10))
    state = toy.digits()
    x, widths = state.input, []
    for i, block in enumerate(make_blocks(network, local_rule)[:-1]):
        x, _ = block.units[0].init_with_output(jax.random.key(i), x, train=False)
        head = block.objective.init(jax.random.key(i), x, state)["params"]["label"]["conv"]["kernel"]
        widths.append(head.shape[-2:])
    assert widths == [(16, 32), (16, 32), (32, 64)]


def test_the_contrastive_form_predicts_no_classes_before_the_last_exit():
    t = toy.make(rules.infopro(contrast=True))
    exits = t.executor.evaluate(t.state, t.batch)
    assert ["accuracy" in block for block in exits] == [False, False, False, False, True]


def test_it_needs_pixels():
    t = toy.make(rules.infopro())
    with pytest.raises(ValueError, match="give batches with pixels"):
        t.executor.init(jax.random.key(0), t.batch._replace(pixels=None))
