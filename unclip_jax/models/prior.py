"""The diffusion prior: a causal transformer that denoises a CLIP image embedding.

Ramesh et al. 2022, section 2.2: the sequence is [encoded caption, CLIP text embedding, timestep,
noised CLIP image embedding, learned query] under a causal mask, and the output at the query
predicts the clean image embedding itself. Details that the paper leaves open follow Karlo: the
encoded caption is the CLIP text encoder's last hidden states, positions are learned, padding is
masked as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.models.layers import Dense, layer_norm, timestep_embedding
from unclip_jax.models.limits import check_sizes
from unclip_jax.models.transformer import Transformer, TransformerConfig, causal_mask

# 17.2 for CLIP's 1,024 dimensions makes a unit vector's entries vary as ImageNet's pixels do: a
# standard deviation of 17.2 / sqrt(1024) = 0.5375. The rule keeps that for every width.
SCALE_PER_SQRT_WIDTH = 17.2 / math.sqrt(1024)


@dataclass(frozen=True)
class PriorConfig:
    """Shape of the prior and of what it is conditioned on."""

    embedding_width: int = 768
    """Width of the CLIP embeddings."""
    text_width: int = 768
    """Width of the CLIP text encoder's hidden states."""
    context_length: int = 77
    transformer: TransformerConfig = TransformerConfig(width=2048, depth=24, heads=32)
    embedding_scale: float | None = None
    """The network's embeddings are the given ones times this; None is 0.5375 *
    sqrt(embedding_width), for embeddings of unit norm."""
    is_whitened: bool = False
    """The network's image embeddings have mean 0 and deviation 1 in every dimension, by statistics
    that are kept beside the weights (Karlo, Kandinsky); the scale is the text embedding's alone."""

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def scale(self) -> float:
        """The factor in force."""
        if self.embedding_scale is not None:
            return self.embedding_scale
        return SCALE_PER_SQRT_WIDTH * math.sqrt(self.embedding_width)


class DiffusionPrior(nn.Module):
    """Predicts the scaled clean image embedding."""

    config: PriorConfig

    @nn.compact
    def __call__(
        self,
        noisy: Array,
        t: Array,
        text_embedding: Array,
        text_states: Array,
        text_mask: Array,
        *,
        train: bool = False,
    ) -> Array:
        """
        Args:
            noisy: [B, embedding_width] float32, scaled (see `PriorConfig.scale`) and noised.
            t: [B] int32, original timestep index.
            text_embedding: [B, embedding_width] float32, unit norm.
            text_states: [B, context_length, text_width] float32.
            text_mask: [B, context_length] bool, False at padding.
        Returns:
            [B, embedding_width] float32, the prediction of the clean scaled embedding.
        """
        c, width = self.config, self.config.transformer.width

        def project(name: str) -> Dense:
            return Dense(width, dtype=jnp.dtype(c.transformer.dtype), name=name)

        time = timestep_embedding(t, width)
        time = project("time_out")(nn.silu(project("time_in")(time)))
        tokens = [time, project("image_embedding_projection")(noisy)]
        return predict_at_query(
            self, c, text_states, text_mask, text_embedding, tokens, train=train
        )


def predict_at_query(
    module: nn.Module,
    config: PriorConfig,
    text_states: Array,
    text_mask: Array,
    text_embedding: Array,
    tokens: list[Array],
    *,
    train: bool,
) -> Array:
    """An embedding, read at the last of [caption, text embedding, *tokens, learned query].

    Args:
        module: the prior that calls this in its compact method; the parameters become its own.
        text_states: [B, context_length, text_width] float32.
        text_mask: [B, context_length] bool, False at padding.
        text_embedding: [B, embedding_width] float32, unit norm.
        tokens: each [B, width], compute dtype.
    Returns:
        [B, embedding_width] float32, scaled.
    """
    c, width, dtype = config, config.transformer.width, jnp.dtype(config.transformer.dtype)
    # Unit vectors have entries of about 1/sqrt(D): bring them to the scale of the prediction.
    text_token = Dense(width, dtype=dtype, name="text_embedding_projection")(
        text_embedding * c.scale
    )
    query = module.param("query", nn.initializers.normal(0.01), (width,))
    query = jnp.broadcast_to(query.astype(dtype), text_token.shape)
    tail_BTD = jnp.stack([text_token, *tokens, query], axis=1)
    caption_BLD = Dense(width, dtype=dtype, name="text_projection")(text_states)
    sequence = jnp.concatenate([caption_BLD, tail_BTD], axis=1)
    length = c.context_length + tail_BTD.shape[1]
    positions = module.param("positional_embedding", nn.initializers.normal(0.01), (length, width))
    visible = jnp.concatenate([text_mask, jnp.ones(tail_BTD.shape[:2], bool)], axis=1)
    states = Transformer(c.transformer, name="transformer")(
        sequence + positions.astype(dtype),
        causal_mask(length) & visible[:, None, None, :],
        train=train,
    )
    last = layer_norm("norm_out")(states[:, -1])
    return Dense(c.embedding_width, name="projection")(last).astype(jnp.float32)
