"""The autoregressive prior: a causal transformer that writes an image embedding code by code.

Ramesh et al. 2022, section 2.2: the sequence is [encoded caption, CLIP text embedding, quantised
dot product of the two embeddings, codes of the image embedding] under a causal mask; see
`embedding_codes.py` for the codes. The paper leaves open how the caption enters: here, as in the
diffusion prior, CLIP's last text states are projected, after an encoder of the prior's own if
`text.depth` is not 0.

One table of code embeddings serves every component and the learned positions tell them apart: a
code is a place within its component's range, whatever the component, and a table for each of 319
components would hold two thirds as many parameters as the transformer.

For sampling (`generation/code_sampling.py`) keys and values are kept as arrays: `prefill` reads the
prefix, `decode_step` adds one code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.cached_transformer import Cache, CachedTransformer, empty_cache
from unclip_jax.models.layers import Dense, layer_norm
from unclip_jax.models.limits import check_sizes
from unclip_jax.models.transformer import Transformer, TransformerConfig, causal_mask


@dataclass(frozen=True)
class ARPriorConfig:
    """Shape of the prior, of the codes that it writes and of what it is conditioned on."""

    embedding_width: int = 768
    """Width of the CLIP embeddings."""
    text_width: int = 768
    """Width of the CLIP text encoder's hidden states."""
    context_length: int = 77
    components: int = 319
    """Codes of an embedding, the principal components that are kept."""
    buckets: int = 1024
    """Values of a code."""
    dot_buckets: int = 1024
    """Values of the dot product's token; one more stands for a dropped condition."""
    text: TransformerConfig = TransformerConfig(width=2048, depth=0, heads=32)
    """The prior's own encoder of CLIP's text states; with depth 0 they are taken as they are. The
    paper's has depth 24."""
    transformer: TransformerConfig = TransformerConfig(width=1664, depth=24, heads=26)

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.components > self.embedding_width:
            raise UserError(
                f"components {self.components} exceed embedding_width {self.embedding_width}: "
                "keep as many or fewer"
            )
        if min(self.components, self.buckets, self.dot_buckets) < 2:
            raise UserError(
                f"components is {self.components}, buckets {self.buckets} and dot_buckets "
                f"{self.dot_buckets}: give 2 or more of each"
            )

    @property
    def prefix_length(self) -> int:
        """The caption, the text embedding and the dot product."""
        return self.context_length + 2

    @property
    def length(self) -> int:
        """Positions of the whole sequence; the last code is written, never read."""
        return self.prefix_length + self.components - 1

    @property
    def null_dot(self) -> int:
        """Token of a dropped dot product."""
        return self.dot_buckets


class ARPrior(nn.Module):
    """Logits of every code given those before it."""

    config: ARPriorConfig

    def setup(self) -> None:
        c, width = self.config, self.config.transformer.width
        dtype = jnp.dtype(c.transformer.dtype)
        normal = nn.initializers.normal
        if c.text.depth:
            self.text_in = Dense(c.text.width, dtype=jnp.dtype(c.text.dtype))
            self.text_transformer = Transformer(c.text)
            self.text_norm_out = layer_norm("text_norm_out")
        self.text_projection = Dense(width, dtype=dtype)
        self.text_embedding_projection = Dense(width, dtype=dtype)
        self.dot_embedding = nn.Embed(
            c.dot_buckets + 1, width, dtype=dtype, embedding_init=normal(0.02)
        )
        self.code_embedding = nn.Embed(c.buckets, width, dtype=dtype, embedding_init=normal(0.02))
        self.positional_embedding = self.param(
            "positional_embedding", normal(0.01), (c.length, width)
        )
        self.transformer = Transformer(c.transformer)
        self.norm_out = layer_norm("norm_out")
        self.projection = Dense(c.buckets)

    def __call__(
        self,
        codes: Array,
        dot: Array,
        text_embedding: Array,
        text_states: Array,
        text_mask: Array,
        *,
        train: bool = False,
    ) -> Array:
        """
        Args:
            codes: [B, components] int32, those of the true embedding (teacher forcing).
            dot: [B] int32, token of the dot product; `config.null_dot` where it is dropped.
            text_embedding: [B, embedding_width] float32, unit norm; zero where it is dropped.
            text_states: [B, context_length, text_width] float32.
            text_mask: [B, context_length] bool, False at padding.
        Returns:
            [B, components, buckets] float32, logits of code i given codes 0 to i - 1.
        """
        c = self.config
        prefix_BPD = self.embed_prefix(dot, text_embedding, text_states, text_mask, train=train)
        sequence = jnp.concatenate([prefix_BPD, self.embed_codes(codes[:, :-1], 0)], axis=1)
        mask = causal_mask(c.length) & visible_positions(c, text_mask)[:, None, None, :]
        states = self.transformer(sequence, mask, train=train)
        return self.to_logits(states[:, c.prefix_length - 1 :])

    def embed_prefix(
        self,
        dot: Array,
        text_embedding: Array,
        text_states: Array,
        text_mask: Array,
        *,
        train: bool = False,
    ) -> Array:
        """[B, prefix_length, width], the input at the positions before the first code."""
        c = self.config
        if c.text.depth:
            # Every word sees the whole caption: nothing in it is predicted.
            text_states = self.text_in(text_states)
            text_states = self.text_transformer(
                text_states, text_mask[:, None, None, :], train=train
            )
            text_states = self.text_norm_out(text_states)
        caption_BLD = self.text_projection(text_states)
        # A unit vector's entries are about 1/sqrt(width): bring them to variance 1.
        text_token = self.text_embedding_projection(text_embedding * math.sqrt(c.embedding_width))
        tail_B2D = jnp.stack([text_token, self.dot_embedding(dot)], axis=1)
        prefix_BPD = jnp.concatenate([caption_BLD, tail_B2D], axis=1)
        positions = self.positional_embedding[: c.prefix_length]
        return prefix_BPD + positions.astype(prefix_BPD.dtype)

    def embed_codes(self, codes: Array, start: Array | int) -> Array:
        """[B, T] int32, codes `start` to `start + T - 1` → [B, T, width]."""
        table = self.positional_embedding
        positions = jax.lax.dynamic_slice_in_dim(
            table, self.config.prefix_length + start, codes.shape[1]
        )
        embedded = self.code_embedding(codes)
        return embedded + positions.astype(embedded.dtype)

    def to_logits(self, states: Array) -> Array:
        """[..., width] → [..., buckets] float32."""
        return self.projection(self.norm_out(states)).astype(jnp.float32)


def code_loss(logits: Array, codes: Array) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy of the codes, in nats a code.

    Args:
        logits: [B, K, buckets] float32.
        codes: [B, K] int32.
    Returns:
        the mean loss, and the share of codes whose logit is the largest.
    """
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], axis=-1)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == codes)
    return -jnp.mean(own), {"accuracy": accuracy}


def visible_positions(config: ARPriorConfig, text_mask: Array) -> Array:
    """[B, context_length] bool → [B, length] bool: all but the caption's padding."""
    rest = jnp.ones((text_mask.shape[0], config.length - config.context_length), bool)
    return jnp.concatenate([text_mask, rest], axis=1)


# -- one code at a time, with keys and values kept


def prefill(
    config: ARPriorConfig,
    params: Any,
    dot: Array,
    text_embedding: Array,
    text_states: Array,
    text_mask: Array,
) -> tuple[Array, Cache]:
    """Reads the prefix; arguments as `ARPrior`.

    Returns:
        [B, buckets] float32, logits of the first code, and the cache.
    """
    c = config.transformer
    prefix_BPD: Any = ARPrior(config).apply(
        {"params": params}, dot, text_embedding, text_states, text_mask, method="embed_prefix"
    )
    cache = empty_cache(c, visible_positions(config, text_mask))
    return _advance(config, params, prefix_BPD, cache, 0)


def decode_step(
    config: ARPriorConfig, params: Any, cache: Cache, codes: Array, index: Array | int
) -> tuple[Array, Cache]:
    """Reads code number `index` of every row, [B] int32.

    Returns:
        [B, buckets] float32, logits of code `index + 1`, and the cache.
    """
    x_B1D: Any = ARPrior(config).apply(
        {"params": params}, codes[:, None], index, method="embed_codes"
    )
    return _advance(config, params, x_B1D, cache, config.prefix_length + index)


def _advance(
    config: ARPriorConfig, params: Any, x_BTD: Array, cache: Cache, start: Array | int
) -> tuple[Array, Cache]:
    tower = CachedTransformer(config.transformer)
    advanced: Any = tower.apply({"params": params["transformer"]}, x_BTD, cache, start)
    states, cache = advanced
    logits: Any = ARPrior(config).apply({"params": params}, states[:, -1], method="to_logits")
    return logits, cache
