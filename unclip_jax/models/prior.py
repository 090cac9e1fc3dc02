"""The diffusion prior: a causal transformer that denoises a CLIP image embedding.

Ramesh et al. 2022, section 2.2: the sequence is [encoded caption, CLIP text embedding, timestep,
noised CLIP image embedding, learned query] under a causal mask, and the output at the query
predicts the clean image embedding itself. Details that the paper leaves open follow Karlo: the
encoded caption is the CLIP text encoder's last hidden states, positions are learned, padding is
masked as well.

The causal mask lets nothing of the caption see the timestep or the noised embedding, so that in
sampling the caption is read once (`read_caption`) and every step computes the three positions after
it (`denoise_embedding`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.models.cached_transformer import Cache, CachedTransformer, empty_cache
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


class QuerySequence(nn.Module):
    """[caption, text embedding, *tokens, learned query], and the embedding read at the query.

    A prior shares its scope with this module: the parameters are the prior's own.
    """

    config: PriorConfig
    num_tokens: int

    def setup(self) -> None:
        c, width = self.config, self.config.transformer.width
        dtype = jnp.dtype(c.transformer.dtype)
        normal = nn.initializers.normal
        self.text_projection = Dense(width, dtype=dtype)
        self.text_embedding_projection = Dense(width, dtype=dtype)
        self.query = self.param("query", normal(0.01), (width,))
        self.positional_embedding = self.param(
            "positional_embedding", normal(0.01), (self.length, width)
        )
        self.transformer = Transformer(c.transformer)
        self.norm_out = layer_norm("norm_out")
        self.projection = Dense(c.embedding_width)

    @property
    def prefix_length(self) -> int:
        """The caption and the text embedding."""
        return self.config.context_length + 1

    @property
    def length(self) -> int:
        """Positions of the whole sequence."""
        return self.prefix_length + self.num_tokens + 1

    def __call__(
        self,
        text_embedding: Array,
        text_states: Array,
        text_mask: Array,
        tokens: list[Array],
        *,
        train: bool = False,
    ) -> Array:
        """
        Args:
            text_embedding: [B, embedding_width] float32, unit norm.
            text_states: [B, context_length, text_width] float32.
            text_mask: [B, context_length] bool, False at padding.
            tokens: num_tokens of [B, width], compute dtype.
        Returns:
            [B, embedding_width] float32, scaled.
        """
        prefix_BPD = self.embed_prefix(text_embedding, text_states)
        sequence = jnp.concatenate([prefix_BPD, self.embed_tokens(tokens)], axis=1)
        mask = causal_mask(self.length) & self.visible(text_mask)[:, None, None, :]
        return self.read_query(self.transformer(sequence, mask, train=train))

    def embed_prefix(self, text_embedding: Array, text_states: Array) -> Array:
        """[B, prefix_length, width], the input at the positions before the tokens."""
        # Unit vectors have entries of about 1/sqrt(D): bring them to the scale of the prediction.
        text_token = self.text_embedding_projection(text_embedding * self.config.scale)
        caption_BLD = self.text_projection(text_states)
        prefix_BPD = jnp.concatenate([caption_BLD, text_token[:, None]], axis=1)
        positions = self.positional_embedding[: self.prefix_length]
        return prefix_BPD + positions.astype(prefix_BPD.dtype)

    def embed_tokens(self, tokens: list[Array]) -> Array:
        """[B, num_tokens + 1, width], the input at the tokens and at the query."""
        query = jnp.broadcast_to(self.query.astype(tokens[0].dtype), tokens[0].shape)
        tail_BTD = jnp.stack([*tokens, query], axis=1)
        return tail_BTD + self.positional_embedding[self.prefix_length :].astype(tail_BTD.dtype)

    def visible(self, text_mask: Array) -> Array:
        """[B, length] bool: all but the caption's padding."""
        rest = self.length - text_mask.shape[1]
        return jnp.pad(text_mask, ((0, 0), (0, rest)), constant_values=True)

    def read_query(self, states_BTD: Array) -> Array:
        """[B, T, width], the query last → [B, embedding_width] float32."""
        return self.projection(self.norm_out(states_BTD[:, -1])).astype(jnp.float32)


class DiffusionPrior(nn.Module):
    """Predicts the scaled clean image embedding."""

    config: PriorConfig

    def setup(self) -> None:
        width, dtype = self.config.transformer.width, jnp.dtype(self.config.transformer.dtype)
        self.time_in = Dense(width, dtype=dtype)
        self.time_out = Dense(width, dtype=dtype)
        self.image_embedding_projection = Dense(width, dtype=dtype)
        self.sequence = QuerySequence(self.config, num_tokens=2)
        nn.share_scope(self, self.sequence)

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
        tokens = self.tokens(noisy, t)
        return self.sequence(text_embedding, text_states, text_mask, tokens, train=train)

    def tokens(self, noisy: Array, t: Array) -> list[Array]:
        """Timestep and noised embedding, each [B, width]."""
        time = timestep_embedding(t, self.config.transformer.width)
        time = self.time_out(nn.silu(self.time_in(time)))
        return [time, self.image_embedding_projection(noisy)]

    def embed_caption(
        self, text_embedding: Array, text_states: Array, text_mask: Array
    ) -> tuple[Array, Array]:
        """Input [B, prefix_length, width] at the caption, and all visible positions [B, length]."""
        prefix_BPD = self.sequence.embed_prefix(text_embedding, text_states)
        return prefix_BPD, self.sequence.visible(text_mask)

    def embed_step(self, noisy: Array, t: Array) -> Array:
        """[B, 3, width], the input at the positions after the caption."""
        return self.sequence.embed_tokens(self.tokens(noisy, t))

    def read_query(self, states_BTD: Array) -> Array:
        """See `QuerySequence.read_query`."""
        return self.sequence.read_query(states_BTD)


# -- one step at a time, with the caption's keys and values kept


def read_caption(
    config: PriorConfig, params: Any, text_embedding: Array, text_states: Array, text_mask: Array
) -> Cache:
    """What every step of a chain attends to; arguments as `DiffusionPrior`."""
    text = (text_embedding, text_states, text_mask)
    embedded: Any = DiffusionPrior(config).apply({"params": params}, *text, method="embed_caption")
    prefix_BPD, visible = embedded
    cache = empty_cache(config.transformer, visible)
    tower = CachedTransformer(config.transformer)
    read: Any = tower.apply({"params": params["transformer"]}, prefix_BPD, cache, 0)
    return read[1]


def denoise_embedding(
    config: PriorConfig, params: Any, cache: Cache, noisy: Array, t: Array
) -> Array:
    """The output of `DiffusionPrior` for a caption that was read.

    Args:
        noisy: [B, embedding_width] float32, scaled and noised.
        t: [B] int32, original timestep index.
    Returns:
        [B, embedding_width] float32.
    """
    prior, tower = DiffusionPrior(config), CachedTransformer(config.transformer)
    x_B3D: Any = prior.apply({"params": params}, noisy, t, method="embed_step")
    start = config.context_length + 1
    states: Any = tower.apply({"params": params["transformer"]}, x_B3D, cache, start)
    output: Any = prior.apply({"params": params}, states[0], method="read_query")
    return output
