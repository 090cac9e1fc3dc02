"""A classifier of noisy pictures, for classifier guidance (Dhariwal & Nichol 2021, section 4).

The first half and the middle of ADM's U-Net, then attention pooling: the mean of the last positions
joins them as one more token and reads them all (Radford et al. 2021, section 2.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.layers import (
    Conv,
    Dense,
    GroupNorm,
    attention,
    rematerialized,
    timestep_embedding,
)
from unclip_jax.models.limits import check_sizes
from unclip_jax.models.unet import AttentionBlock, ResBlock, UNetConfig, space_to_depth


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of the classifier. The defaults are ADM's for ImageNet at 64 x 64."""

    num_classes: int = 1000
    encoder: UNetConfig = UNetConfig(channels=128, depth=(4,))
    """The U-Net whose first half this is; `out_channels` has no meaning here."""

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.num_classes < 2:
            raise UserError(f"num_classes is {self.num_classes}: give 2 or more")
        if self.encoder.context_width is not None:
            raise UserError(
                f"encoder.context_width is {self.encoder.context_width}: a classifier reads no "
                "text, give None"
            )


class AttentionPool(nn.Module):
    """Positions → one vector, by attention from their mean."""

    config: UNetConfig
    outputs: int

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        batch, height, side, channels = x_BHWC.shape
        heads, length = c.num_heads(channels), height * side + 1
        x = x_BHWC.reshape(batch, length - 1, channels)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        normal = nn.initializers.normal(channels**-0.5)
        x = x + self.param("positional_embedding", normal, (length, channels)).astype(x.dtype)
        qkv = Dense(3 * channels, dtype=dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, heads, -1), 2, 0)
        pooled = attention(q[:, :1], k, v, None, c.attention).reshape(batch, channels)
        return Dense(self.outputs, dtype=dtype, name="projection")(pooled)


class Classifier(nn.Module):
    """Noisy picture and timestep → logits of the classes."""

    config: ClassifierConfig

    @nn.compact
    def __call__(self, x_BHWC: Array, t: Array, *, train: bool = False) -> Array:
        """
        Args:
            x_BHWC: [B, image_size, image_size, in_channels] float32, the noisy picture.
            t: [B] int32, original timestep index.
        Returns:
            [B, num_classes] float32.
        """
        c, dtype = self.config.encoder, jnp.dtype(self.config.encoder.dtype)
        res_block = rematerialized(ResBlock, c.remat)
        attention_block = rematerialized(AttentionBlock, c.remat)
        levels = len(c.channel_mult)

        def residual(name: str, width: int, h: Array, resample: str | None = None) -> Array:
            return res_block(c, width, resample, train, name=name)(h, time)  # type: ignore[arg-type]

        def attend(name: str, h: Array) -> Array:
            return attention_block(c, name=name)(h, None, None)

        time = timestep_embedding(t, c.sinusoids)
        time = nn.silu(Dense(c.time_width, dtype=dtype, name="time_in")(time))
        time = Dense(c.time_width, dtype=dtype, name="time_out")(time)

        width = c.channels * c.channel_mult[0]
        x_BHWC = space_to_depth(x_BHWC, c.patch_size)
        h = Conv(width, (3, 3), padding=1, dtype=dtype, name="conv_in")(x_BHWC)
        for level, mult in enumerate(c.channel_mult):
            width = c.channels * mult
            for i in range(c.level_depth(level)):
                h = residual(f"down{level}_block{i}", width, h)
                if c.attends(level):
                    h = attend(f"down{level}_attention{i}", h)
            if level < levels - 1:
                h = residual(f"down{level}_downsample", width, h, "down")

        h = residual("middle_block0", width, h)
        if c.has_middle_attention:
            h = attend("middle_attention", h)
        h = residual("middle_block1", width, h)

        h = nn.silu(GroupNorm(c.groups, name="norm_out")(h))
        return AttentionPool(c, self.config.num_classes, name="pool")(h).astype(jnp.float32)
