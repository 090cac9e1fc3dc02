"""CLIP against OpenAI's, with the same weights: embeddings, hidden states, logits and loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.reference_weights import Golden, Tree, clip_from_openai
from unclip_jax.models.clip import CLIP, OPENAI_MEAN, OPENAI_STD, CLIPConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.training.contrastive import softmax_loss

CONFIG = CLIPConfig(
    embedding_width=40,
    image_size=32,
    patch_size=8,
    vision=TransformerConfig(width=64, depth=3, heads=4, activation="quick_gelu"),
    text=TransformerConfig(width=48, depth=3, heads=6, activation="quick_gelu"),
    vocab_size=1000,
    context_length=20,
)


@pytest.fixture(scope="module", autouse=True)
def full_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(Path(__file__).parents[1] / "golden" / "parity_clip.npz")


@pytest.fixture(scope="module")
def params(golden: Golden) -> Tree:
    params = clip_from_openai(golden.weights)
    assert golden.weights.unread() == []
    return params


@pytest.fixture(scope="module")
def images(golden: Golden) -> np.ndarray:
    """The reference was given normalised pictures: undo that, so that ours normalises again."""
    picture = golden.picture("pixels") * np.array(OPENAI_STD) + np.array(OPENAI_MEAN)
    return np.asarray(2 * picture - 1, np.float32)


def test_image_embedding(golden: Golden, params: Tree, images: np.ndarray) -> None:
    embedding = CLIP(CONFIG).apply({"params": params}, images, method=CLIP.encode_image)
    golden.check(embedding, "image")


def test_text_embedding_and_states(golden: Golden, params: Tree) -> None:
    tokens = golden.inputs["tokens"]
    embedding, states = CLIP(CONFIG).apply({"params": params}, tokens, method=CLIP.encode_text)
    golden.check(embedding, "text")
    golden.check(states, "text_states")


def test_logits_and_loss(golden: Golden, params: Tree, images: np.ndarray) -> None:
    out = CLIP(CONFIG).apply({"params": params}, images, golden.inputs["tokens"])
    golden.check(out["logit_scale"] * out["image"] @ out["text"].T, "logits_per_image")
    loss, _ = softmax_loss(out["image"], out["text"], out["logit_scale"])
    np.testing.assert_allclose(loss, golden.outputs["loss"], rtol=1e-5)


@pytest.mark.parametrize("change", ["activation", "epsilon", "order"])
def test_a_small_mistake_is_seen(
    change: str, golden: Golden, params: Tree, images: np.ndarray
) -> None:
    """The tolerance is tight enough for the mistakes that ports make."""
    config = CONFIG
    if change == "activation":
        vision = TransformerConfig(width=64, depth=3, heads=4, activation="gelu")
        config = CLIPConfig(**{**vars(CONFIG), "vision": vision})
    elif change == "epsilon":
        config = CLIPConfig(**{**vars(CONFIG), "norm_epsilon": 1e-3})
    else:
        images = jnp.swapaxes(images, 1, 2)
    embedding = CLIP(config).apply({"params": params}, images, method=CLIP.encode_image)
    with pytest.raises(AssertionError):
        golden.check(embedding, "image")
