"""The linear and the one-step prior: closed forms, losses in float64, what may have influence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.networks import MASK, Network, changed_rows, draw, same
from tests.models.test_golden_counts import array, count
from unclip_jax.errors import UserError
from unclip_jax.models.linear_prior import (
    LinearPrior,
    LinearPriorConfig,
    add_pairs,
    fit_linear,
    linear_loss,
    sample_linear_prior,
)
from unclip_jax.models.one_step_prior import (
    OneStepPrior,
    OneStepPriorConfig,
    one_step_loss,
    sample_one_step_prior,
)
from unclip_jax.models.transformer import TransformerConfig

WIDTH = 12
LINEAR = LinearPriorConfig(WIDTH, ridge=0.0)
ONE_STEP = OneStepPriorConfig(WIDTH, 10, 6, TransformerConfig(width=16, depth=2, heads=2))


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


TEXT = unit(draw(1, 80, WIDTH) + 0.3)
IMAGE = unit(TEXT @ draw(2, WIDTH, WIDTH) + 0.5 * draw(3, 80, WIDTH))


def fit(text: np.ndarray, image: np.ndarray, ridge: float = 0.0) -> Any:
    moments = None
    for start in range(0, len(text), 33):
        rows = slice(start, start + 33)
        moments = add_pairs(moments, text[rows], image[rows])
    assert moments is not None
    return fit_linear(moments, replace(LINEAR, ridge=ridge))["projection"]


# -- linear prior


def test_closed_form_is_least_squares() -> None:
    inputs = np.column_stack([TEXT, np.ones(len(TEXT))]).astype(np.float64)
    expected = np.linalg.lstsq(inputs, IMAGE.astype(np.float64), rcond=None)[0]
    found = fit(TEXT, IMAGE)
    np.testing.assert_allclose(found["kernel"], expected[:-1], atol=1e-5)
    np.testing.assert_allclose(found["bias"], expected[-1], atol=1e-5)


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_ridge_is_least_squares_with_more_rows(ridge: float) -> None:
    """A penalty on W is a row sqrt(penalty) e_j with target 0 for each input j."""
    x, y = TEXT.astype(np.float64), IMAGE.astype(np.float64)
    penalty = len(x) * ridge * x.var(axis=0).mean()
    rows = np.column_stack([np.sqrt(penalty) * np.eye(WIDTH), np.zeros(WIDTH)])
    inputs = np.concatenate([np.column_stack([x, np.ones(len(x))]), rows])
    targets = np.concatenate([y, np.zeros((WIDTH, WIDTH))])
    expected = np.linalg.lstsq(inputs, targets, rcond=None)[0]
    found = fit(TEXT, IMAGE, ridge)
    np.testing.assert_allclose(found["kernel"], expected[:-1], atol=1e-5)
    np.testing.assert_allclose(found["bias"], expected[-1], atol=1e-5)
    assert np.linalg.norm(found["kernel"]) < np.linalg.norm(fit(TEXT, IMAGE)["kernel"])


def test_fewer_pairs_than_dimensions_are_met_exactly() -> None:
    found = fit(TEXT[:6], IMAGE[:6])
    np.testing.assert_allclose(TEXT[:6] @ found["kernel"] + found["bias"], IMAGE[:6], atol=1e-5)


def test_closed_form_is_where_the_loss_is_flat() -> None:
    """The trained module and the closed form agree on names, shapes and the minimum."""
    module = LinearPrior(LINEAR)

    def loss(params: Any) -> Any:
        predicted: Any = module.apply({"params": params}, TEXT)
        return linear_loss(predicted, jnp.asarray(IMAGE))[0]

    params = {"projection": fit(TEXT, IMAGE)}
    shapes = jax.eval_shape(module.init, jax.random.key(0), TEXT)["params"]
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
    gradient = jax.grad(loss)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient(params)))
    assert largest < 1e-5
    moved = jax.tree.map(lambda x: x + 0.01, params)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient(moved))) > 1e-3


def test_linear_loss_and_cosine() -> None:
    predicted = 2 * IMAGE
    loss, metrics = linear_loss(jnp.asarray(predicted), jnp.asarray(IMAGE))
    assert loss == pytest.approx(1, abs=1e-5)
    assert metrics["cosine"] == pytest.approx(1, abs=1e-5)


# -- one-step prior


@pytest.fixture(scope="module")
def network() -> Network:
    inputs = {
        "noise": draw(3, 3, WIDTH),
        "text_embedding": unit(draw(4, 3, WIDTH)),
        "text_states": draw(5, 3, 6, 10),
        "text_mask": MASK,
    }
    return Network(OneStepPrior(ONE_STEP), inputs)


@pytest.mark.parametrize("name", ["noise", "text_embedding"])
def test_one_step_prior_depends_on(name: str, network: Network) -> None:
    changed = network(**{name: network.inputs[name] + 0.5})
    assert changed_rows(network(), changed) == [True] * 3


def test_one_step_prior_reads_the_caption_and_not_its_padding(network: Network) -> None:
    states = network.inputs["text_states"]
    hidden = np.where(MASK[..., None], states, states + 5)
    assert same(network(), network(text_states=hidden))
    shown = np.where(MASK[..., None], states + 5, states)
    assert changed_rows(network(), network(text_states=shown)) == [True] * 3


def test_one_step_loss_is_its_formula() -> None:
    config = replace(ONE_STEP, contrastive_weight=0.3)
    predicted, image, text = 3 * draw(6, 5, WIDTH), IMAGE[:5], TEXT[:5]
    scale = 14.3
    loss, metrics = one_step_loss(
        config, jnp.asarray(predicted), jnp.asarray(image), jnp.asarray(text), jnp.asarray(scale)
    )
    p, z, t = (x.astype(np.float64) for x in (predicted, image, text))
    mse = np.mean((p - z * 17.2 / np.sqrt(1024) * np.sqrt(WIDTH)) ** 2)
    logits = scale * (p / np.linalg.norm(p, axis=1, keepdims=True)) @ t.T
    contrastive = np.mean([np.log(np.exp(row - row[i]).sum()) for i, row in enumerate(logits)])
    assert metrics["mse"] == pytest.approx(mse, rel=1e-5)
    assert metrics["contrastive"] == pytest.approx(contrastive, rel=1e-5)
    assert loss == pytest.approx(mse + 0.3 * contrastive, rel=1e-5)


def test_one_step_loss_prefers_the_own_caption() -> None:
    """It is one-sided: among the captions, not among the pictures."""
    rows = jnp.eye(4, WIDTH)
    right = one_step_loss(ONE_STEP, rows, rows, rows, jnp.asarray(5.0))[1]
    wrong = one_step_loss(ONE_STEP, rows, rows, jnp.roll(rows, 1, axis=0), jnp.asarray(5.0))[1]
    assert right["contrastive"] == pytest.approx(np.log(np.exp(5) + 3) - 5, rel=1e-5)
    assert wrong["contrastive"] == pytest.approx(np.log(np.exp(5) + 3), rel=1e-5)
    one_caption = jnp.broadcast_to(rows[:1], rows.shape)
    alike = one_step_loss(ONE_STEP, rows, rows, one_caption, jnp.asarray(5.0))[1]
    assert alike["contrastive"] == pytest.approx(np.log(4), rel=1e-5)


def test_paper_size_is_33_million() -> None:
    inputs = (array(1, 768), array(1, 768), array(1, 77, 768), array(1, 77, dtype=bool))
    assert count(OneStepPrior(OneStepPriorConfig()), *inputs) == 33_141_504


def test_scale_can_be_given() -> None:
    assert ONE_STEP.scale == pytest.approx(0.5375 * WIDTH**0.5)
    assert replace(ONE_STEP, embedding_scale=2.0).scale == 2


# -- what every prior offers


def one_step_params(network: Network) -> Callable:
    return partial(sample_one_step_prior, ONE_STEP, network.params)


def linear_params(network: Network) -> Callable:
    return partial(sample_linear_prior, LINEAR, {"projection": fit(TEXT, IMAGE)})


@pytest.mark.parametrize("make", [one_step_params, linear_params])
def test_samples_have_unit_norm_and_depend_on_their_own_row(
    make: Callable, network: Network
) -> None:
    call = jax.jit(make(network))
    keys = jax.random.split(jax.random.key(2), 3)
    names = ("text_embedding", "text_states", "text_mask")
    inputs = [network.inputs[name] for name in names]
    whole = np.asarray(call(*inputs, keys))
    assert whole.shape == (3, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)
    for row in range(3):
        alone = [np.repeat(x[row : row + 1], 3, axis=0) for x in inputs]
        assert same(np.asarray(call(*alone, keys[jnp.full(3, row)]))[0], whole[row])


def test_one_step_samples_are_the_network_on_its_noise(network: Network) -> None:
    keys = jax.random.split(jax.random.key(2), 3)
    noise = np.stack([jax.random.normal(key, (WIDTH,)) for key in keys])
    names = ("text_embedding", "text_states", "text_mask")
    inputs = [network.inputs[name] for name in names]
    call = jax.jit(one_step_params(network))
    drawn = np.asarray(call(*inputs, keys))
    assert same(drawn, unit(network(noise=noise)))
    other = np.asarray(call(*inputs, jax.random.split(jax.random.key(3), 3)))
    assert changed_rows(drawn, other) == [True] * 3


def test_wrong_configs_are_refused() -> None:
    with pytest.raises(UserError, match="ridge"):
        LinearPriorConfig(ridge=-1.0)
    with pytest.raises(UserError, match="contrastive_weight"):
        replace(ONE_STEP, contrastive_weight=-0.1)
