"""The 64 x 64 decoder: GLIDE's U-Net, conditioned on a CLIP image embedding and on the caption.

Ramesh et al. 2022, section 2.1: the embedding is projected and added to the timestep embedding, and
projected once more to four tokens that join the text encoder's output. GLIDE's caption path stays:
a text encoder that is trained with the decoder. Karlo has none, and reads what CLIP makes of the
caption instead.

What the conditions come to depends neither on the picture nor on the timestep: `encode_condition`
computes it once for all steps of a chain, and `denoise_picture` is the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.known import KNOWN_CHANNELS, known_or_nothing
from unclip_jax.models.layers import Dense, layer_norm
from unclip_jax.models.limits import check_sizes
from unclip_jax.models.text import TextConfig, TextTransformer
from unclip_jax.models.unet import UNet, UNetConfig, project_context


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


@dataclass(frozen=True)
class EncodedCondition:
    """What the U-Net is told besides the picture and the timestep."""

    time_condition: Array
    """[B, time_width], added to the time embedding."""
    context: Array | Mapping[str, Array]
    """[B, S, context_width] tokens, or `unet.project_context` of them."""
    context_mask: Array | None
    """[B, S] bool, False at padding where it is hidden."""


jax.tree_util.register_dataclass(EncodedCondition)


class Decoder(nn.Module):
    """Noisy picture, timestep, CLIP image embedding and caption → the U-Net's raw output."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        width, time_width = c.embedding_width, c.unet.time_width
        if c.text is None:
            self.states_to_context = Dense(c.unet.context_width or 0)
            self.states_norm = layer_norm("states_norm")
        else:
            self.text = TextTransformer(c.text)
        self.text_to_time = Dense(time_width)
        if width is not None:
            if c.null_embedding == "learned":
                self.null_embedding = self.param(
                    "null_embedding", nn.initializers.normal(1.0), (width,)
                )
            self.embedding_to_tokens = Dense(c.num_embedding_tokens * (c.unet.context_width or 0))
            self.embedding_to_time = Dense(time_width)
        self.unet = UNet(c.unet)

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
        given = (embedding, has_embedding, tokens, text_mask, text_embedding, text_states)
        return self.denoise(x, t, self.encode(*given, train=train), known, train=train)

    def encode(
        self,
        embedding: Array | None,
        has_embedding: Array | None,
        tokens: Array,
        text_mask: Array,
        text_embedding: Array | None = None,
        text_states: Array | None = None,
        *,
        train: bool = False,
    ) -> EncodedCondition:
        """Arguments as `__call__`; the context as tokens."""
        c = self.config
        if c.text is None:
            assert text_states is not None and text_embedding is not None
            states = self.states_norm(self.states_to_context(text_states))
            pooled = text_embedding
        else:
            states, pooled = self.text(tokens, text_mask, train=train)
        time_condition = self.text_to_time(pooled)
        if c.embedding_width is None:
            return EncodedCondition(time_condition, states, text_mask if c.masks_padding else None)

        assert embedding is not None and has_embedding is not None
        is_learned = c.null_embedding == "learned"
        null = self.null_embedding if is_learned else jnp.zeros(c.embedding_width)
        embedding = jnp.where(has_embedding[:, None], embedding * c.scale, null)
        time_condition += self.embedding_to_time(embedding)
        # The embedding's tokens go in front of the caption's states.
        shape = (embedding.shape[0], c.num_embedding_tokens, states.shape[-1])
        front = self.embedding_to_tokens(embedding).reshape(shape)
        context, mask = jnp.concatenate([front, states], axis=1), None
        if c.masks_padding:
            mask = jnp.concatenate([jnp.ones(shape[:2], bool), text_mask], axis=1)
        return EncodedCondition(time_condition, context, mask)

    def denoise(
        self,
        x: Array,
        t: Array,
        condition: EncodedCondition,
        known: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """As `__call__`, for a condition that is encoded."""
        c = condition
        known = known_or_nothing(known, x, is_inpainting=self.config.is_inpainting)
        inputs = (x, t, c.time_condition, c.context, c.context_mask, known)
        return self.unet(*inputs, train=train)


# -- one step at a time, with what the conditions come to kept


def encode_condition(config: DecoderConfig, params: Any, *condition: Any) -> EncodedCondition:
    """What every step of a chain is told, the context projected for each attention block.

    Args:
        params: of the `Decoder`.
        condition: arguments of `Decoder.encode`.
    """
    encoded: Any = Decoder(config).apply({"params": params}, *condition, method="encode")
    context = project_context(config.unet, params["unet"], encoded.context)
    return EncodedCondition(encoded.time_condition, context, encoded.context_mask)


def denoise_picture(
    config: DecoderConfig,
    params: Any,
    condition: EncodedCondition,
    x: Array,
    t: Array,
    known: Array | None = None,
) -> Array:
    """The output of `Decoder` for a condition that is encoded; other arguments as `Decoder`."""
    output: Any = Decoder(config).apply(
        {"params": params}, x, t, condition, known, method="denoise"
    )
    return output
