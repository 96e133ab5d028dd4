"""PredSim, and each of its two losses alone."""

import pytest

from jaxlocal import rules
from tests import toy


@pytest.mark.parametrize(
    ("rule", "terms"),
    [
        (rules.predsim(), {"similarity", "prediction"}),
        (rules.predsim(similarity=0.0, prediction=1.0), {"prediction"}),
        (rules.predsim(similarity=1.0, prediction=0.0), {"similarity"}),
    ],
)
def test_terms_and_heads(rule, terms):
    t = toy.make(rule)
    assert t.state.blocks[0].variables["params"]["head"].keys() == terms
    _, metrics = t.executor.step(t.state, t.batch)
    for block in metrics[:-1]:
        assert ("accuracy" in block) == ("prediction" in terms)
        weights = {"similarity": 0.99, "prediction": 0.01} if len(terms) == 2 else dict.fromkeys(terms, 1.0)
        assert float(block["loss"]) == pytest.approx(
            sum(weights[name] * float(block[name]) for name in terms), rel=1e-4
        )
