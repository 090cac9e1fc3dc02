"""The 64 x 64 decoder: GLIDE's U-Net, conditioned on a CLIP image embedding and on the caption.

Ramesh et al. 2022, section 2.1: the embedding is projected and added to the timestep embedding, and
projected once more to four tokens that join the text encoder's output. GLIDE's caption path stays:
a text encoder that is trained with the decoder. Karlo has none, and reads what CLIP makes of the
caption instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.known import KNOWN_CHANNELS, known_or_nothing
from unclip_jax.models.layers import Dense, layer_norm
from unclip_jax.models.limits import check_sizes
from unclip_jax.models.text import TextConfig, TextTransformer
from unclip_jax.models.unet import UNet, UNetConfig


@dataclass(frozen=True)
class DecoderConfig:
    """The U-Net, its text encoder and how the CLIP embedding enters."""

    unet: UNetConfig = UNetConfig(context_width=512)
    text: TextConfig | None = TextConfig()
    """The decoder's own text encoder. None reads CLIP's states and text embedding (Karlo)."""
    clip_text_width: int = 768
    """Width of CLIP's text states; read where `text` is None."""
    embedding_width: int | None = 768
    """Width of the CLIP image embedding; None is GLIDE, which knows captions alone."""
    num_embedding_tokens: int = 4
    embedding_scale: float | None = None
    """Factor on the unit-norm embedding; None is sqrt(embedding_width), entries of variance 1."""
    null_embedding: Literal["zero", "learned"] = "zero"
    """What stands for a dropped embedding: the paper sets it to zero or to a learned vector."""
    masks_padding: bool = False
    """Hide padded caption positions from the U-Net's attention. GLIDE does not: its learned padding
    vectors are read like words. Karlo does."""
    is_inpainting: bool = False
    """The U-Net also reads the known part of a picture and which pixels it has (GLIDE): four more
    input channels, after the noisy picture's."""

    def __post_init__(self) -> None:
        check_sizes(self)
        channels = 3 + KNOWN_CHANNELS * self.is_inpainting
        if self.unet.in_channels != channels:
            raise UserError(
                f"unet.in_channels is {self.unet.in_channels}: a decoder with is_inpainting "
                f"{self.is_inpainting} has {channels}"
            )
        if self.text is None:
            if self.unet.context_width is None or self.embedding_width is None:
                raise UserError(
                    "a decoder without a text encoder of its own (text None) needs "
                    "unet.context_width and embedding_width: set both"
                )
        elif self.unet.context_width != self.text.transformer.width:
            raise UserError(
                f"unet.context_width {self.unet.context_width} must equal the text encoder's width "
                f"{self.text.transformer.width}"
            )

    @property
    def scale(self) -> float:
        """The factor in force."""
        if self.embedding_scale is not None:
            return self.embedding_scale
        return math.sqrt(self.embedding_width or 1)


class Decoder(nn.Module):
    """Noisy picture, timestep, CLIP image embedding and caption → the U-Net's raw output."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        embedding: Array | None,
        has_embedding: Array | None,
        tokens: Array,
        text_mask: Array,
        text_embedding: Array | None = None,
        text_states: Array | None = None,
        known: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """
        Args:
            x: [B, H, W, 3] float32, the noisy picture.
            t: [B] int32, original timestep index.
            embedding: [B, embedding_width] float32, unit norm, or as CLIP gives it, whatever the
                decoder was trained on; not read if the width is None.
            has_embedding: [B] bool; False drops the embedding (classifier-free guidance).
            tokens: [B, context_length] int32; a dropped caption is the empty one.
            text_mask: [B, context_length] bool, False at padding.
            text_embedding: [B, embedding_width] float32 and
            text_states: [B, context_length, clip_text_width] float32, CLIP's encoding of the
                caption; read where config.text is None.
            known: [B, H, W, 4] float32, `known_channels` of the picture, where config.is_inpainting
                is set; None says that nothing is known.
        Returns:
            [B, H, W, out_channels] float32.
        Raises:
            UserError: a known part for a decoder that reads none.
        """
        c = self.config
        known = known_or_nothing(known, x, is_inpainting=c.is_inpainting)
        width = c.embedding_width
        if width is None:
            embedding = None
        else:
            assert embedding is not None and has_embedding is not None
            null = jnp.zeros(width)
            if c.null_embedding == "learned":
                null = self.param("null_embedding", nn.initializers.normal(1.0), (width,))
            embedding = jnp.where(has_embedding[:, None], embedding * c.scale, null)

        if c.text is None:
            assert text_states is not None and text_embedding is not None
            states = Dense(c.unet.context_width or 0, name="states_to_context")(text_states)
            states, pooled = layer_norm("states_norm")(states), text_embedding
        else:
            states, pooled = TextTransformer(c.text, name="text")(tokens, text_mask, train=train)
        context, context_mask = states, text_mask if c.masks_padding else None
        if embedding is not None:
            context, context_mask = self.context(embedding, states, text_mask)
        time_condition = Dense(c.unet.time_width, name="text_to_time")(pooled)
        if embedding is not None:
            time_condition += Dense(c.unet.time_width, name="embedding_to_time")(embedding)
        inputs = (x, t, time_condition, context, context_mask, known)
        return UNet(c.unet, name="unet")(*inputs, train=train)

    def context(
        self, embedding: Array, states: Array, text_mask: Array
    ) -> tuple[Array, Array | None]:
        """The embedding's tokens in front of the caption's states, and the mask over both."""
        c, batch, width = self.config, embedding.shape[0], states.shape[-1]
        tokens = Dense(c.num_embedding_tokens * width, name="embedding_to_tokens")(embedding)
        tokens = tokens.reshape(batch, c.num_embedding_tokens, width)
        context = jnp.concatenate([tokens, states], axis=1)
        if not c.masks_padding:
            return context, None
        visible = jnp.ones((batch, c.num_embedding_tokens), bool)
        return context, jnp.concatenate([visible, text_mask], axis=1)
