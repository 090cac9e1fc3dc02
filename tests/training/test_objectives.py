"""Losses against closed forms, and how often a condition is dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import toys
from unclip_jax.models.clip import CLIP
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.training.contrastive import sigmoid_loss, softmax_loss
from unclip_jax.training.objectives.clip import make_clip_objective
from unclip_jax.training.objectives.conditions import encode_image, to_float
from unclip_jax.training.objectives.decoder import make_decoder_objective
from unclip_jax.training.objectives.prior import make_prior_objective
from unclip_jax.training.objectives.steering import make_classifier_objective, make_labeler
from unclip_jax.training.stages import init_params

KEY = jax.random.key(3)
EMPTY = toys.empty_caption()
CLIP_CONFIG = toys.clip_recipe().model


@pytest.fixture(scope="module")
def frozen() -> Any:
    return init_params(toys.clip_recipe(), jax.random.key(1))


# -- contrastive losses


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_softmax_loss_of_orthonormal_pairs(scale: float) -> None:
    rows = jnp.eye(5, 8)
    loss, accuracy = softmax_loss(rows, rows, jnp.asarray(scale))
    assert loss == pytest.approx(math.log(math.exp(scale) + 4) - scale, abs=1e-6)
    assert accuracy == 1


def test_softmax_loss_is_symmetric_and_sees_wrong_pairs() -> None:
    rows = jnp.eye(4)
    wrong = jnp.roll(rows, 1, axis=0)
    loss, accuracy = softmax_loss(rows, wrong, jnp.asarray(2.0))
    assert loss == pytest.approx(math.log(math.exp(2) + 3), rel=1e-6)
    assert accuracy == 0
    one = jax.random.normal(KEY, (4, 6))
    other = jax.random.normal(jax.random.key(4), (4, 6))
    swapped = float(softmax_loss(other, one, jnp.asarray(2.0))[0])
    assert softmax_loss(one, other, jnp.asarray(2.0))[0] == pytest.approx(swapped, rel=1e-6)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (3.0, 0.5)])
def test_sigmoid_loss_of_orthonormal_pairs(scale: float, bias: float) -> None:
    rows = jnp.eye(5, 8)
    loss, accuracy = sigmoid_loss(rows, rows, jnp.asarray(scale), jnp.asarray(bias))
    # Each text: one pair that belongs together, four that do not.
    expected = math.log1p(math.exp(-(scale + bias))) + 4 * math.log1p(math.exp(bias))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert accuracy == 1


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_clip_objective_is_the_loss_of_its_networks(loss: Any, frozen: Any) -> None:
    batch = toys.batch(4)
    objective = make_clip_objective(toys.recipe("clip", loss=loss))
    value, metrics = jax.jit(objective)(frozen, {}, batch, KEY)
    out: Any = CLIP(CLIP_CONFIG).apply(
        {"params": frozen}, to_float(batch["image"]), batch["tokens"]
    )
    pair = (out["image"], out["text"], out["logit_scale"])
    expected = softmax_loss(*pair) if loss == "softmax" else sigmoid_loss(*pair, out["logit_bias"])
    assert value == pytest.approx(float(expected[0]), rel=1e-4)
    assert metrics["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-5)


# -- pictures


def test_uint8_becomes_minus_one_to_one() -> None:
    found = to_float(jnp.array([0, 51, 255], jnp.uint8))
    np.testing.assert_allclose(found, [-1, -0.6, 1], atol=1e-6)


def test_encode_image_resizes_has_unit_norm_and_no_gradient(frozen: Any) -> None:
    clip = CLIP(CLIP_CONFIG)
    flat = np.full((2, 32, 32, 3), 90, np.uint8)
    large, small = (encode_image(clip, frozen, x) for x in (flat, flat[:, :16, :16]))
    np.testing.assert_allclose(large, small, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(large, axis=-1), 1, rtol=1e-5)
    gradient = jax.grad(lambda p: jnp.sum(encode_image(clip, p, flat)))(frozen)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


# -- what the networks of the two diffusion stages are given


class Recorder:
    """Stands in for a network's apply: keeps what it was given, returns `output(x)`."""

    def __init__(self, output: Callable[[Any], Any]) -> None:
        self.output, self.seen = output, []

    def __call__(self, variables: Any, x: Any, *rest: Any, **options: Any) -> Any:
        assert options["train"] is True and "dropout" in options["rngs"]
        self.seen = [x, *rest]
        return self.output(x)


def is_empty(tokens: Any) -> np.ndarray:
    return (np.asarray(tokens) == EMPTY).all(axis=1)


def near(share: float, expected: float, rows: int) -> bool:
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / rows)


@pytest.mark.parametrize("width", [8, 16, 64])
def test_a_prior_that_says_zero_has_the_loss_of_the_scaling_rule(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unit vectors times 0.5375 sqrt(D) have a mean square of 0.5375 ** 2 at any width D."""
    clip_recipe = toys.recipe("clip", model={"embedding_width": width})
    recipe = toys.recipe("prior", model={"embedding_width": width})
    monkeypatch.setattr(DiffusionPrior, "apply", Recorder(jnp.zeros_like))
    frozen = init_params(clip_recipe, jax.random.key(1))
    objective = make_prior_objective(recipe, clip_recipe.model, EMPTY)
    loss, metrics = objective({}, frozen, toys.batch(6), KEY)
    assert loss == pytest.approx((17.2 / 32) ** 2, rel=1e-5)
    assert metrics["cosine"] == pytest.approx(0)


def test_prior_is_given_the_clip_text_of_the_kept_captions(
    frozen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 2000
    batch = toys.batch(rows)
    recorder = Recorder(jnp.zeros_like)
    monkeypatch.setattr(DiffusionPrior, "apply", recorder)
    recipe = toys.recipe("prior", text_drop=0.1)
    make_prior_objective(recipe, CLIP_CONFIG, EMPTY)({}, frozen, batch, KEY)
    xt, t, text, states, mask = (np.asarray(x) for x in recorder.seen)
    dropped = mask.sum(axis=1) == 2
    assert near(dropped.mean(), 0.1, rows)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-5)
    tokens = np.where(dropped[:, None], EMPTY, batch["tokens"])
    encode = CLIP(CLIP_CONFIG).apply
    embedding, hidden = encode({"params": frozen}, tokens, method=CLIP.encode_text)  # type: ignore[misc]
    norm = np.linalg.norm(embedding, axis=1, keepdims=True)
    np.testing.assert_allclose(text, embedding / norm, atol=1e-5)
    np.testing.assert_allclose(states, hidden, atol=1e-5)
    assert t.min() < 20 and t.max() > 980 and abs(t.mean() - 499.5) < 4 * 289 / math.sqrt(rows)
    assert xt[t > 950].std() == pytest.approx(1, abs=0.1)


def test_decoders_drops_are_independent_and_as_often_as_asked(
    frozen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 2000
    recorder = Recorder(lambda x: jnp.zeros((*x.shape[:3], 6)))
    monkeypatch.setattr(Decoder, "apply", recorder)
    recipe = toys.recipe("decoder", embedding_drop=0.1, text_drop=0.5)
    objective = make_decoder_objective(recipe, CLIP_CONFIG, EMPTY)
    loss, metrics = objective({}, frozen, toys.batch(rows), KEY)
    _, t, embedding, has_embedding, tokens, mask = (np.asarray(x) for x in recorder.seen)
    no_embedding, no_text = ~has_embedding, is_empty(tokens)
    assert near(no_embedding.mean(), 0.1, rows) and near(no_text.mean(), 0.5, rows)
    assert near((no_embedding & no_text).mean(), 0.05, rows)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    assert (mask.sum(axis=1) == 2).tolist() == no_text.tolist()
    assert len(set(t.tolist())) > 800
    # A network that says "no noise" is wrong by the noise, whose variance is 1.
    assert metrics["mse"] == pytest.approx(1, abs=0.01)
    assert loss == pytest.approx(float(metrics["mse"] + metrics["vb"]), rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_or_everything_is_dropped(
    share: float, frozen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(lambda x: jnp.zeros((*x.shape[:3], 6)))
    monkeypatch.setattr(Decoder, "apply", recorder)
    recipe = toys.recipe("decoder", embedding_drop=share, text_drop=share)
    make_decoder_objective(recipe, CLIP_CONFIG, EMPTY)({}, frozen, toys.batch(50), KEY)
    has_embedding, tokens = recorder.seen[3], recorder.seen[4]
    assert (np.asarray(has_embedding) == (share == 0)).all()
    assert (is_empty(tokens) == (share == 1)).all()


def test_decoder_learns_its_variance(frozen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With learned_range the second half of the channels has a gradient, from the bound alone."""
    values = 0.1 * jax.random.normal(KEY, (4, 16, 16, 6))

    def apply(self: Any, variables: Any, *inputs: Any, **options: Any) -> Any:
        return variables["params"]

    monkeypatch.setattr(Decoder, "apply", apply)
    objective = make_decoder_objective(toys.decoder_recipe(), CLIP_CONFIG, EMPTY)
    gradient = jax.grad(lambda p: objective(p, frozen, toys.batch(4), KEY)[0])(values)
    assert np.abs(gradient[..., 3:]).max() > 0
    mse = jax.grad(lambda p: objective(p, frozen, toys.batch(4), KEY)[1]["mse"])(values)
    np.testing.assert_allclose(gradient[..., :3], mse[..., :3], rtol=1e-5, atol=1e-9)
    assert not np.any(mse[..., 3:])


def test_decoder_without_learned_variance_has_the_plain_loss(
    frozen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "apply", Recorder(jnp.zeros_like))
    base = toys.decoder_recipe().model
    unet = type(base.unet)(**{**vars(base.unet), "out_channels": 3})
    diffusion = {"prediction": "v", "variance": "fixed_small"}
    recipe = toys.recipe("decoder", model={"unet": unet}, diffusion=diffusion)
    objective = make_decoder_objective(recipe, CLIP_CONFIG, EMPTY)
    loss, metrics = objective({}, frozen, toys.batch(8), KEY)
    assert set(metrics) == {"mse"} and loss == metrics["mse"]


def test_losses_depend_on_the_key_alone(frozen: Any) -> None:
    recipe = toys.prior_recipe()
    params = toys.random_like(jax.eval_shape(lambda: init_params(recipe, KEY)))
    objective = jax.jit(make_prior_objective(recipe, CLIP_CONFIG, EMPTY))
    losses = [
        float(objective(params, frozen, toys.batch(4), jax.random.key(i))[0]) for i in (0, 1, 0)
    ]
    assert losses[0] == losses[2] != losses[1]


# -- steering


def test_a_class_is_named_by_whole_words() -> None:
    label = make_labeler(("red", "green apple", "Red"))
    texts = ["a RED car", "a bored cat", "green apple, red", "green apples", ""]
    assert label(texts)[:, 0].tolist() == [0, -1, 0, -1, -1]
    assert label(["a green apple"]).tolist() == [[1]] and label([]).shape == (0, 1)


def test_pictures_without_a_class_are_not_learned_from() -> None:
    recipe = toys.recipe("classifier")
    objective = jax.jit(jax.value_and_grad(make_classifier_objective(recipe), has_aux=True))
    shapes = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))
    params = toys.random_like(shapes)
    images = toys.batch(4)["image"]
    labels = np.array([[0], [-1], [1], [-1]], np.int32)
    (loss, metrics), gradient = objective(params, {}, {"image": images, "tokens": labels}, KEY)
    assert metrics["labelled"] == 0.5 and float(loss) > 0
    other = images.copy()
    other[[1, 3]] = 255 - other[[1, 3]]
    (same, _), same_gradient = objective(params, {}, {"image": other, "tokens": labels}, KEY)
    assert same == loss
    jax.tree.map(np.testing.assert_array_equal, gradient, same_gradient)
    none = np.full((4, 1), -1, np.int32)
    (zero, _), flat = objective(params, {}, {"image": images, "tokens": none}, KEY)
    assert zero == 0 and all(not np.any(leaf) for leaf in jax.tree.leaves(flat))
