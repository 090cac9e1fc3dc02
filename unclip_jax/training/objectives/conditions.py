"""What the networks are given besides noise: pictures, embeddings, and what is dropped of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.models.clip import CLIP, stage_embedding
from unclip_jax.models.text import text_mask


def to_float(images: Array) -> Array:
    """uint8 [0, 255] → float32 [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def encode_image(clip: CLIP, params: Any, images: Array) -> Array:
    """uint8 pictures of any square size → CLIP image embeddings [B, E], without gradient.

    A picture of another size than CLIP's is resized with an antialiased cubic filter.
    """
    size = clip.config.image_size
    x = to_float(images)
    if x.shape[1:3] != (size, size):
        x = jax.image.resize(x, (x.shape[0], size, size, 3), "cubic")
    embedding: Any = clip.apply({"params": params}, x, method=CLIP.encode_image)
    return jax.lax.stop_gradient(stage_embedding(clip.config, embedding))


@dataclass(frozen=True)
class Pairs:
    """What a frozen CLIP makes of a batch."""

    image: Array
    """[B, E] float32, unit norm."""
    text: Array
    """[B, E] float32, unit norm."""
    states: Array
    """[B, L, text width] float32, hidden states of the captions."""
    mask: Array
    """[B, L] bool, False at padding."""


def encode_pairs(clip: CLIP, params: Any, batch: dict[str, Array]) -> Pairs:
    """Both sides of a batch of pictures, or their stored embeddings, and captions."""
    encoded: Any = clip.apply({"params": params}, batch["tokens"], method=CLIP.encode_text)
    text, states = encoded
    image = image_embedding(clip, params, batch)
    return Pairs(image, stage_embedding(clip.config, text), states, text_mask(batch["tokens"]))


def image_embedding(clip: CLIP, params: Any, batch: dict[str, Array]) -> Array:
    """The stored embedding of each row where the batch has it, else `encode_image`'s."""
    if "embedding" in batch:
        return batch["embedding"]
    return encode_image(clip, params, batch["image"])


def drop_captions(key: Array, share: float, tokens: Array, empty_tokens: np.ndarray) -> Array:
    """`tokens` with a random `share` of its rows replaced by the empty caption."""
    dropped = jax.random.bernoulli(key, share, (tokens.shape[0], 1))
    return jnp.where(dropped, jnp.asarray(empty_tokens), tokens)
