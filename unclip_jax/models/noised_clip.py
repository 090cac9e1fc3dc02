"""A CLIP that was trained on noisy pictures, to steer sampling by a caption (GLIDE).

Nichol et al. 2021, section 2.4 and released code: CLIP's image encoder sees x_t and the timestep. A
table of one learned token for each timestep takes the place of the class token. The text encoder is
CLIP's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.clip import (
    MAX_LOGIT_SCALE,
    CLIPConfig,
    TextEncoder,
    encode_patches,
    normalize,
)
from unclip_jax.models.limits import check_sizes
from unclip_jax.models.transformer import TransformerConfig


@dataclass(frozen=True)
class NoisedCLIPConfig:
    """Shape of the two encoders. The defaults are those of GLIDE's released model."""

    clip: CLIPConfig = CLIPConfig(
        embedding_width=512,
        image_size=64,
        patch_size=4,
        vision=TransformerConfig(width=768, depth=12, heads=12),
        text=TransformerConfig(width=512, depth=12, heads=8),
        vocab_size=65536,
        initial_logit_scale=MAX_LOGIT_SCALE,
    )
    num_timesteps: int = 1000
    """Of the forward process that makes its pictures noisy; `t` is below it."""

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.num_timesteps < 1:
            raise UserError(f"num_timesteps is {self.num_timesteps}: give 1 or more")


class NoisedVisionEncoder(nn.Module):
    """CLIP's ViT with the timestep's token in place of the class token."""

    config: NoisedCLIPConfig

    @nn.compact
    def __call__(self, images: Array, t: Array, *, train: bool = False) -> Array:
        """
        Args:
            images: [B, image_size, image_size, 3] float32, noisy pictures.
            t: [B] int32 in [0, num_timesteps), original timestep index.
        Returns:
            [B, embedding_width] float32, not normalised.
        """
        c, width = self.config.clip, self.config.clip.image_tower.width
        normal = nn.initializers.normal(width**-0.5)
        table = nn.Embed(
            self.config.num_timesteps, width, embedding_init=normal, name="time_embedding"
        )
        return encode_patches(self, c, images, table(t), train=train)


class NoisedCLIP(nn.Module):
    """Both encoders and the temperature."""

    config: NoisedCLIPConfig

    def setup(self) -> None:
        c = self.config.clip
        self.vision = NoisedVisionEncoder(self.config)
        self.text = TextEncoder(c)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(c.initial_logit_scale), ()
        )
        if c.has_logit_bias:
            self.logit_bias = self.param(
                "logit_bias", nn.initializers.constant(c.initial_logit_bias), ()
            )

    def __call__(
        self, images: Array, t: Array, tokens: Array, *, train: bool = False
    ) -> dict[str, Array]:
        """
        Args:
            images: [B, image_size, image_size, 3] float32, noisy pictures.
            t: [B] int32, original timestep index.
            tokens: [B, context_length] int32.
        Returns:
            As `CLIP`: `image` and `text` of unit norm, `logit_scale`, `logit_bias`.
        """
        image = self.vision(images, t, train=train)
        text, _ = self.text(tokens, train=train)
        bias = self.logit_bias if self.config.clip.has_logit_bias else jnp.zeros(())
        return {
            "image": normalize(image),
            "text": normalize(text),
            "logit_scale": jnp.exp(self.logit_scale),
            "logit_bias": bias,
        }

    def encode_image(self, images: Array, t: Array) -> Array:
        """[B, S, S, 3] float32 and [B] int32 → [B, embedding_width] float32, not normalised."""
        return self.vision(images, t)

    def encode_text(self, tokens: Array) -> tuple[Array, Array]:
        """[B, context_length] int32 → embedding (not normalised) and hidden states, float32."""
        return self.text(tokens)
