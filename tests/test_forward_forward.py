"""Forward-Forward against its formulas, written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlocal import Batch, Network, Task, cut_everywhere, fused, make_blocks, models, rules
from jaxlocal.block import gradients
from jaxlocal.models.forward_forward import Passes
from tests import toy

K, KEY = 3, jax.random.key(7)


def batch_of(b: int, label=None) -> Batch:
    pixels = jax.random.uniform(jax.random.key(0), (b, 3, 4, 1))
    return Batch(pixels * 3 - 1, jnp.arange(b) % K if label is None else jnp.full(b, label), pixels)


def built(features=(6, 5, 4), **options):
    """Blocks, feed, state, and an executor, whose softmax heads are not at zero any more."""
    units = models.mlp(features)
    network, local = rules.forward_forward(**options)(Network(units, cut_everywhere(units)), Task(K))
    blocks = make_blocks(network, local)
    executor = fused(blocks, local.feed, toy.OPTIMIZER)
    state = executor.init(KEY, batch_of(1))

    def drawn(path, x):
        return jax.random.normal(KEY, x.shape) if "unit_0']['dense" not in jax.tree_util.keystr(path) else x

    params = [jax.tree_util.tree_map_with_path(drawn, block.variables["params"]) for block in state.blocks]
    blocks_of = zip(state.blocks, params, strict=True)
    state = state.replace(blocks=tuple(own.replace(variables={"params": new}) for own, new in blocks_of))
    return blocks, local.feed, state, executor


def layer(state, i: int):
    return jax.tree.map(np.asarray, state.blocks[i].variables["params"]["unit_0"]["dense"])


def relu_layer(state, i: int, x):
    return np.maximum(x @ layer(state, i)["kernel"] + layer(state, i)["bias"], 0)


def unit_length(x):
    """At a mean square of one."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-8)


def labelled(batch: Batch, labels):
    """Images with these labels, ``[b, k]``, over their first pixels."""
    image = np.asarray(batch.pixels).reshape(len(batch.label), -1)
    return unit_length(np.concatenate([np.broadcast_to(labels, (len(image), K)), image[:, K:]], 1))


def softplus(x):
    return np.log1p(np.exp(x))


@pytest.mark.parametrize("total", [False, True])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_the_loss_and_the_update_of_a_layer(i, total):
    """``dL/dW = x^T (2 h dL/dg)``, with ``dL/dg`` a sigmoid: of positives up, of negatives down."""
    blocks, feed, state, _ = built(negatives="uniform", total=total, threshold=0.5)
    batch, carry = batch_of(6), None
    for j in range(i + 1):
        carry = feed(j, carry, batch, KEY, train=True)
        variables = state.blocks[j].variables
        gradient, output, out = gradients(blocks[j], variables, carry, batch, KEY, dtype=jnp.float32)
        x, carry = np.asarray(carry.x, np.float64), output
    h = relu_layer(state, i, x)
    n = h.shape[-1] if total else 1
    g, theta = (h**2).mean(-1) * n, 0.5 * n
    expected = softplus(theta - g[:, 0]) + softplus(g[:, 1] - theta)
    np.testing.assert_allclose(out.metrics.get("goodness", out.metrics.get("contrast")), expected.mean(), rtol=1e-5)
    slope = np.stack([-1 / (1 + np.exp(g[:, 0] - theta)), 1 / (1 + np.exp(theta - g[:, 1])), 0 * theta * g[:, 2]], 1)
    delta = (slope[..., None] * 2 * h * n / h.shape[-1] / len(x)).reshape(-1, h.shape[-1])
    found = gradient["unit_0"]["dense"]
    np.testing.assert_allclose(found["kernel"], x.reshape(len(delta), -1).T @ delta, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["bias"], delta.sum(0), rtol=1e-4, atol=1e-6)


def test_labels_are_the_first_pixels():
    _, feed, _, _ = built(negatives="uniform")
    batch = batch_of(5)
    train, test = (np.asarray(feed(0, None, batch, KEY, train=train).x) for train in (True, False))
    np.testing.assert_allclose(train[:, 0], labelled(batch, np.eye(K)[np.asarray(batch.label)]), rtol=1e-5)
    for x, k in (*((test[:, i], np.eye(K)[i]) for i in range(K)), (test[:, -1], 1 / K), (train[:, -1], 1 / K)):
        np.testing.assert_allclose(x, labelled(batch, k), rtol=1e-5)
    np.testing.assert_allclose((test**2).mean(-1), 1, rtol=1e-5)


WEIGHTS = np.array([0.1, 0.0, 0.2])  # of what is believed of each label, the same for every pixel but those of labels


def drawn_labels(feed, blocks, batch) -> np.ndarray:
    """Of the negatives; all else of theirs is the positives'."""
    carry = feed(0, None, batch, KEY, train=True)
    n = carry.x.shape[-1]
    if carry.x.shape[1] == 2:  # the first unit draws: of a layer that changes nothing, one sees what
        unit = blocks[0].units[0].clone(unit=models.DenseUnit(n))
        beliefs = jnp.zeros((n, K)).at[K:].set(WEIGHTS)
        layers = {"dense": {"kernel": jnp.eye(n), "bias": jnp.zeros(n)}, "beliefs": {"dense": {"kernel": beliefs}}}
        carry = unit.apply({"params": layers}, carry, train=True, rngs={"dropout": KEY})
    positive, negative, _ = np.moveaxis(np.asarray(carry.x), 1, 0)
    np.testing.assert_allclose(positive[:, K:], negative[:, K:], rtol=1e-6)
    np.testing.assert_allclose(positive[:, :K].max(1), negative[:, :K].max(1), rtol=1e-6)
    np.testing.assert_array_equal((negative[:, :K] > 0).sum(1), 1)
    return negative[:, :K].argmax(1)


@pytest.mark.parametrize("negatives", ["beliefs", "uniform"])
def test_negatives_never_have_the_true_label(negatives):
    blocks, feed, _, _ = built(negatives=negatives)
    batch = batch_of(600)
    drawn = drawn_labels(feed, blocks, batch)
    assert (drawn != np.asarray(batch.label)).all()
    assert set(drawn) == set(range(K))


def test_uniform_negatives_are_as_often_of_one_wrong_label_as_of_another():
    blocks, feed, _, _ = built(negatives="uniform")
    share = np.bincount(drawn_labels(feed, blocks, batch_of(4000, label=1)), minlength=K) / 4000
    np.testing.assert_allclose(share, [0.5, 0, 0.5], atol=0.03)


def test_negatives_follow_the_beliefs_of_the_first_layer():
    """The share of each label is its probability among the wrong ones, mean over the examples."""
    blocks, feed, _, _ = built()
    batch = batch_of(4000, label=1)
    neutral = np.asarray(feed(0, None, batch, KEY, train=True).x)[:, -1]
    p = np.exp(neutral[:, K:].sum(1, keepdims=True) * WEIGHTS) * [1, 0, 1]
    expected = (p / p.sum(1, keepdims=True)).mean(0)
    assert 0.6 < expected[2] < 0.8
    share = np.bincount(drawn_labels(feed, blocks, batch), minlength=K) / 4000
    np.testing.assert_allclose(share, expected, atol=0.03)


def passed(state, batch: Batch, labels):
    """Activities of each layer under these labels, before they are normalised."""
    outputs, x = [], labelled(batch, labels)
    for i in range(len(state.blocks)):
        outputs.append(relu_layer(state, i, x))
        x = unit_length(outputs[-1])
    return outputs


@pytest.mark.parametrize("total", [False, True])
def test_prediction_by_goodness_is_that_of_a_run_per_label(total):
    """Summed over the layers but the first, which counts at its own exit alone."""
    _, _, state, executor = built(total=total, threshold=0.5)
    batch = batch_of(64)
    runs = [passed(state, batch, label) for label in np.eye(K)]
    norm = np.sum if total else np.mean
    good = np.array([[norm(h**2, axis=-1) for h in run] for run in runs])  # label, layer, example
    exits = executor.evaluate(state, batch)
    for i, at in enumerate((good[:, 0], good[:, 1], good[:, 1] + good[:, 2])):
        assert exits[i]["accuracy"] == pytest.approx((at.argmax(0) == np.asarray(batch.label)).mean())
    theta = 0.5 * (5 if total else 1)
    true, g = np.eye(K)[np.asarray(batch.label)].T, good[:, 1]
    expected = (true * softplus(theta - g) + (1 - true) * softplus(g - theta) / (K - 1)).sum(0).mean()
    np.testing.assert_allclose(exits[1]["loss"], expected, rtol=1e-4)


def test_prediction_by_the_softmax_takes_one_pass():
    _, _, state, executor = built(prediction="softmax")
    batch = batch_of(64)
    _, *outputs = map(unit_length, passed(state, batch, 1 / K))
    kernel = np.asarray(state.blocks[-1].variables["params"]["head"]["softmax"]["dense"]["kernel"])
    scores = np.concatenate(outputs, 1) @ kernel
    last = executor.evaluate(state, batch)[-1]
    assert last["accuracy"] == pytest.approx((scores.argmax(1) == np.asarray(batch.label)).mean())
    true = scores[np.arange(64), np.asarray(batch.label)]
    np.testing.assert_allclose(last["softmax"], (np.log(np.exp(scores).sum(1)) - true).mean(), rtol=1e-4)


def test_what_is_predicted_does_not_depend_on_the_label():
    blocks, feed, state, _ = built()

    def logits(batch):
        carry = None
        for i, block in enumerate(blocks):
            carry = feed(i, carry, batch, KEY, train=False)
            params = state.blocks[i].variables["params"]
            carry = block.units[0].apply({"params": params["unit_0"]}, carry, train=False)
        head = {"params": params.get("head", {})}
        return blocks[-1].objective.apply(head, carry, batch, KEY, train=False).logits

    np.testing.assert_array_equal(logits(batch_of(8)), logits(batch_of(8, label=2)))


def test_softmax_and_beliefs_do_not_teach_the_layers():
    """Without a difference between positives and negatives in goodness, the layer's gradient is zero."""
    blocks, feed, state, _ = built(threshold=1e4)  # no positive is good enough, every negative is bad enough
    batch = batch_of(6)
    carry = feed(0, None, batch, KEY, train=True)
    gradient, _, out = gradients(blocks[0], state.blocks[0].variables, carry, batch, KEY, dtype=jnp.float32)
    assert gradient["unit_0"]["beliefs"]["dense"]["kernel"].any()
    h = relu_layer(state, 0, np.asarray(carry.x)[:, 0])
    by_hand = np.asarray(carry.x)[:, 0].T @ (-2 * h / h.shape[1] / 6)
    np.testing.assert_allclose(gradient["unit_0"]["dense"]["kernel"], by_hand, rtol=1e-4, atol=1e-6)
    assert out.loss > out.metrics["contrast"]


def test_images_without_pixels_are_taken_as_they_are():
    _, feed, _, _ = built()
    batch = batch_of(4)
    flat = Batch(batch.pixels.reshape(4, -1), batch.label)
    for train in (True, False):
        one, other = (feed(0, None, b, KEY, train=train) for b in (batch, flat))
        assert isinstance(one, Passes)
        np.testing.assert_array_equal(one.x, other.x)


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"negatives": "hard"}, {"prediction": "last"}])
def test_options_are_checked(options):
    with pytest.raises(ValueError, match="forward_forward: threshold"):
        rules.forward_forward(**options)


@pytest.mark.parametrize(
    ("units", "cuts", "each", "message"),
    [
        (models.mlp((4, 4)), (), False, "in 2 blocks or more"),
        (models.mlp((4, 4), norm=True), (1,), False, "without batch norm"),
        (models.convnet((4, 4), (1, 1)), (1,), False, "give an mlp"),
        (models.mlp((4, 4)), (1,), True, "one answer an example"),
    ],
)
def test_networks_and_tasks_that_it_cannot_have(units, cuts, each, message):
    with pytest.raises(ValueError, match=message):
        rules.forward_forward()(Network(units, cuts), Task(K, each=each))


def test_an_image_needs_more_pixels_than_there_are_classes():
    _, feed, _, _ = built()
    with pytest.raises(ValueError, match="labels take 3 pixels of an image, which has 3"):
        feed(0, None, Batch(jnp.ones((2, 3)), jnp.zeros(2, int)), KEY, train=False)
