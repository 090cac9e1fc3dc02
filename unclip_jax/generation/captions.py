"""Captions as the prior and the decoder take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from unclip_jax.models.clip import CLIP, CLIPConfig, stage_embedding


@dataclass(frozen=True)
class Caption:
    """Encoded captions, what the prior and the decoder take."""

    tokens: Array
    """[B, L] int32."""
    embedding: Array
    """[B, E] float32, unit norm or as `CLIPConfig.unit_embeddings` says."""
    states: Array
    """[B, L, text width] float32."""


jax.tree_util.register_dataclass(Caption)


def encode_caption(config: CLIPConfig, params: Any, tokens: Array) -> Caption:
    """Captions as the prior and the decoder take them.

    Args:
        params: of CLIP.
        tokens: [B, L] int32.
    """
    encoded: Any = CLIP(config).apply({"params": params}, tokens, method=CLIP.encode_text)
    embedding, states = encoded
    return Caption(tokens, stage_embedding(config, embedding), states)
