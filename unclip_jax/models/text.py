"""The decoder's own text encoder, as in GLIDE (Nichol et al. 2021, section 3 and released code).

Bidirectional, not causal. Padding is not masked inside it: every padded position carries its own
learned vector, so that "how much of the caption is missing" is an input like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.models.layers import layer_norm
from unclip_jax.models.limits import check_sizes
from unclip_jax.models.transformer import Transformer, TransformerConfig


@dataclass(frozen=True)
class TextConfig:
    """Shape of the text encoder."""

    vocab_size: int = 49408
    context_length: int = 77
    transformer: TransformerConfig = TransformerConfig(width=512, depth=16, heads=8)

    def __post_init__(self) -> None:
        check_sizes(self)


class TextTransformer(nn.Module):
    """Caption tokens → one state for each and one pooled state."""

    config: TextConfig

    @nn.compact
    def __call__(self, tokens: Array, mask: Array, *, train: bool = False) -> tuple[Array, Array]:
        """
        Args:
            tokens: [B, context_length] int32.
            mask: [B, context_length] bool, False at padding.
        Returns:
            states [B, context_length, width] float32, and the last position's state [B, width],
            which GLIDE uses in place of ADM's class embedding.
        """
        c, width = self.config, self.config.transformer.width
        normal = nn.initializers.normal
        table = nn.Embed(c.vocab_size, width, embedding_init=normal(0.02), name="token_embedding")
        shape = (c.context_length, width)
        positions = self.param("positional_embedding", normal(0.01), shape)
        padding = self.param("padding_embedding", normal(0.01), shape)
        x_BTD = jnp.where(mask[..., None], table(tokens) + positions, padding)
        x_BTD = Transformer(c.transformer, name="transformer")(x_BTD, train=train)
        states = layer_norm("norm_out")(x_BTD).astype(jnp.float32)
        return states, states[:, -1]


def text_mask(tokens: Array) -> Array:
    """Which positions hold text: True up to and including the end of text, the largest id.

    Args:
        tokens: [B, L] int32.
    Returns:
        [B, L] bool.
    """
    end_of_text = jnp.argmax(tokens, axis=-1, keepdims=True)
    return jnp.arange(tokens.shape[-1]) <= end_of_text
