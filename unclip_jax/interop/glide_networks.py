"""GLIDE's four networks: from a caption, to full size, and both once more with a hole to fill.

Nichol et al. 2021 (arXiv 2112.10741), released code. One U-Net and one text encoder; they differ in
what joins the noisy picture as further channels: the known part of the picture and its mask, and
the small picture at full size. The parameters are named as in `models.decoder.Decoder`, and those
of the base model are a `Decoder`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.interop.adm_networks import check_given
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.text import TextConfig, TextTransformer
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNet, UNetConfig
from unclip_jax.models.upsampler import resize_low_resolution

CHANNELS = 3
"""Of a picture."""


@dataclass(frozen=True)
class GlideConfig:
    """Shape of one of the four. The default is the released 64 x 64 model."""

    unet: UNetConfig = UNetConfig(context_width=512)
    text: TextConfig = TextConfig(50257, 128, TransformerConfig(width=512, depth=16, heads=8))
    """GPT-2's vocabulary with one end-of-text token, which also pads."""
    is_upsampler: bool = False
    """Reads a small picture."""
    is_inpainting: bool = False
    """Reads a picture with a hole, and which pixels of it are known."""

    def __post_init__(self) -> None:
        parts = 1 + self.is_inpainting + self.is_upsampler
        expected = CHANNELS * parts + self.is_inpainting
        if self.unet.in_channels != expected:
            raise UserError(
                f"unet.in_channels is {self.unet.in_channels}: with is_upsampler "
                f"{self.is_upsampler} and is_inpainting {self.is_inpainting} give {expected}"
            )
        if self.unet.context_width != self.text.transformer.width:
            raise UserError(
                f"unet.context_width {self.unet.context_width} must equal the text encoder's width "
                f"{self.text.transformer.width}"
            )

    def decoder(self) -> DecoderConfig:
        """The base model, or that for inpainting, as a decoder of this package with the same
        parameters.

        Raises:
            UserError: it is an upsampler.
        """
        if self.is_upsampler:
            raise UserError("a decoder reads no small picture: give one of GLIDE's base models")
        return DecoderConfig(
            unet=self.unet,
            text=self.text,
            embedding_width=None,
            is_inpainting=self.is_inpainting,
        )


class Glide(nn.Module):
    """Noisy picture, timestep, caption and known pictures → the U-Net's raw output."""

    config: GlideConfig

    @nn.compact
    def __call__(
        self,
        x_BHWC: Array,
        t: Array,
        tokens: Array,
        text_mask: Array,
        low_resolution_BHWC: Array | None = None,
        known_BHWC: Array | None = None,
        known_mask_BHW1: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """
        Args:
            x_BHWC: [B, H, W, 3] float32, the noisy picture.
            t: [B] int32, original timestep index.
            tokens: [B, context_length] int32.
            text_mask: [B, context_length] bool, False at padding.
            low_resolution_BHWC: [B, h, w, 3] float32 in [-1, 1], of any size up to H x W; needed
                by an upsampler, else None.
            known_BHWC: [B, H, W, 3] float32 in [-1, 1], read by inpainting; None with its mask
                for "nothing is known".
            known_mask_BHW1: [B, H, W, 1] float32, 1 where the picture is known and 0 in the hole.
        Returns:
            [B, H, W, out_channels] float32.
        Raises:
            UserError: an input is missing, or there is one that the network does not have.
        """
        c = self.config
        check_given("a small picture", low_resolution_BHWC, c.is_upsampler)
        known = (known_BHWC is not None, known_mask_BHW1 is not None)
        if known[0] != known[1] or (known[0] and not c.is_inpainting):
            raise UserError(
                "a known picture and its mask go together, and only to an inpainting network: "
                "give both or none"
            )
        inputs = [x_BHWC]
        if c.is_inpainting:
            mask = jnp.zeros_like(x_BHWC[..., :1])
            picture = x_BHWC  # of which nothing is seen without a mask
            if known_BHWC is not None and known_mask_BHW1 is not None:
                picture, mask = known_BHWC, known_mask_BHW1.astype(x_BHWC.dtype)
            inputs += [picture * mask, mask]
        if low_resolution_BHWC is not None:
            size = (x_BHWC.shape[1], x_BHWC.shape[2])
            inputs.append(resize_low_resolution(low_resolution_BHWC, size, "linear"))

        text = TextTransformer(c.text, name="text")
        states, pooled = text(tokens, text_mask, train=train)
        condition = nn.Dense(c.unet.time_width, name="text_to_time")(pooled)
        x = jnp.concatenate(inputs, axis=-1)
        return UNet(c.unet, name="unet")(x, t, condition, states, train=train)
