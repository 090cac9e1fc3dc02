"""The U-Net of ADM and GLIDE (Dhariwal & Nichol 2021, section 3; Nichol et al. 2021).

A level is `depth` residual blocks, each followed by attention where the level's resolution asks for
it, and ends in a residual block that halves the resolution. The way up has one block more a level,
and takes the states of the way down as extra channels.

What attention makes of the context tokens depends neither on the picture nor on the timestep:
`project_context` computes it once for all steps of a chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.config import Dtype
from unclip_jax.errors import UserError
from unclip_jax.models.known import zero_after
from unclip_jax.models.layers import (
    Attention,
    Conv,
    Dense,
    Dropout,
    GroupNorm,
    Remat,
    attention,
    rematerialized,
    timestep_embedding,
)
from unclip_jax.models.limits import check_blocks, check_sizes


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a U-Net. The defaults are ADM's for 64 x 64."""

    image_size: int = 64
    """Side in pixels for which `attention_resolutions` is meant; any multiple runs."""
    in_channels: int = 3
    """Of the noisy picture and all that joins it as further channels."""
    out_channels: int = 6
    """6 for 3 channels of noise and 3 of learned variance."""
    patch_size: int = 1
    """Pixels a side that become channels of one position before the first level, and pixels again
    after the last (simple diffusion, Hoogeboom et al. 2023, section 3.4). ADM and GLIDE have 1."""
    channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    """Width of each level as a multiple of `channels`."""
    time_channels: int | None = None
    """Width of the timestep's sinusoids, a quarter of the time embedding's; None is `channels`.
    ADM at 512 x 512 has 256 of them, and 128 channels in its first level."""
    depth: tuple[int, ...] = (3,)
    """Residual blocks of each level; one number serves all."""
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    """Sides, in positions, of the levels that attend."""
    has_middle_attention: bool = True
    head_channels: int = 64
    heads: int | None = None
    """A fixed number of heads at every level instead of `head_channels`."""
    context_width: int | None = None
    """Width of the tokens that attention may also look at; None for none."""
    time_norm: Literal["scale_shift", "additive"] = "scale_shift"
    """How the time embedding enters a block: GN(h) (1 + scale) + shift, or h + bias before GN."""
    groups: int = 32
    dropout: float = 0.0
    dtype: Dtype = "float32"
    """Compute dtype; parameters stay float32."""
    remat: Remat = "none"
    """What the backward pass computes again: nothing, whole blocks, all but the convolutions and
    the matrix products with weights."""
    attention: Attention = "xla"

    def __post_init__(self) -> None:
        check_sizes(self)
        levels = len(self.channel_mult)
        if len(self.depth) not in (1, levels):
            raise UserError(
                f"depth {self.depth} has {len(self.depth)} numbers: give one, or one for each of "
                f"the {levels} levels of channel_mult"
            )
        if self.image_size % (self.patch_size * 2 ** (levels - 1)):
            raise UserError(
                f"image_size {self.image_size} cannot be halved {levels - 1} times in patches of "
                f"{self.patch_size}: change it or shorten channel_mult"
            )
        check_blocks(self.depth, levels)
        for mult in self.channel_mult:
            if self.channels * mult % self.groups:
                raise UserError(
                    f"{self.channels * mult} channels are not divisible by groups {self.groups}: "
                    "change channels or groups"
                )

    @property
    def time_width(self) -> int:
        """Width of the time embedding: 4 * sinusoids."""
        return 4 * self.sinusoids

    @property
    def sinusoids(self) -> int:
        """Width of what the timestep is first turned into."""
        return self.time_channels or self.channels

    def level_depth(self, level: int) -> int:
        """Residual blocks of `level`, 0 the finest."""
        return self.depth[0] if len(self.depth) == 1 else self.depth[level]

    def attends(self, level: int) -> bool:
        """Whether `level` has attention."""
        return self.image_size // self.patch_size // 2**level in self.attention_resolutions

    def num_heads(self, width: int) -> int:
        """Attention heads at `width` channels."""
        heads = self.heads or width // self.head_channels
        if width % (heads if self.heads else self.head_channels):
            raise UserError(
                f"{width} channels do not divide into heads of {self.head_channels}: "
                "change channels, head_channels or heads"
            )
        return heads


class ResBlock(nn.Module):
    """GN-SiLU-conv, time embedding, GN-SiLU-dropout-conv(0), plus a skip; may halve or double."""

    config: UNetConfig
    width: int
    resample: Literal["down", "up"] | None = None
    train: bool = False

    @nn.compact
    def __call__(self, x_BHWC: Array, time: Array) -> Array:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        h = nn.silu(GroupNorm(c.groups, name="norm_in")(x_BHWC)).astype(dtype)
        if self.resample is not None:
            h, x_BHWC = _resample(h, self.resample), _resample(x_BHWC, self.resample)
        h = Conv(self.width, (3, 3), padding=1, dtype=dtype, name="conv_in")(h)

        modulated = c.time_norm == "scale_shift"
        time = Dense(self.width * (2 if modulated else 1), dtype=dtype, name="time_projection")(
            nn.silu(time)
        )[:, None, None]
        norm = GroupNorm(c.groups, name="norm_out")
        if modulated:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + time)
        h = Dropout(c.dropout, deterministic=not self.train)(nn.silu(h)).astype(dtype)
        # Zero at the start: every block begins as its skip (Dhariwal & Nichol, code).
        h = Conv(
            self.width,
            (3, 3),
            padding=1,
            dtype=dtype,
            kernel_init=nn.initializers.zeros,
            name="conv_out",
        )(h)
        if x_BHWC.shape[-1] != self.width:
            x_BHWC = Conv(self.width, (1, 1), dtype=dtype, name="skip")(x_BHWC)
        return x_BHWC + h


CONTEXT_KV = "context_kv"
"""Name of an attention block's projection of the context to keys and values."""


class AttentionBlock(nn.Module):
    """Pixels attend to the context tokens and to each other, in one softmax (GLIDE)."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        x_BHWC: Array,
        context_BSD: Array | None,
        context_mask_BS: Array | None,
        context_kv: Array | None = None,
    ) -> Array:
        """`context_kv` is `context_BSD` as `project_context` leaves it, and takes its place."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        batch, height, width, channels = x_BHWC.shape
        heads, pixels = c.num_heads(channels), height * width
        h = GroupNorm(c.groups, name="norm")(x_BHWC).reshape(batch, pixels, channels)
        qkv = Dense(3 * channels, dtype=dtype, name="qkv")(h)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, pixels, 3, heads, -1), 2, 0)

        mask = None
        if context_BSD is not None:
            context_kv = Dense(2 * channels, dtype=dtype, name=CONTEXT_KV)(context_BSD)
        if context_kv is not None:
            kv = context_kv.reshape(batch, context_kv.shape[1], 2, heads, -1)
            context_k, context_v = jnp.moveaxis(kv, 2, 0)
            k = jnp.concatenate([context_k, k], axis=1)
            v = jnp.concatenate([context_v, v], axis=1)
            if context_mask_BS is not None:  # the pixels' own keys are always visible
                seen = jnp.ones((batch, pixels), bool)
                mask = jnp.concatenate([context_mask_BS, seen], axis=1)[:, None, None, :]
        h = attention(q, k, v, mask, c.attention).reshape(x_BHWC.shape)
        h = Dense(channels, dtype=dtype, kernel_init=nn.initializers.zeros, name="projection")(h)
        return x_BHWC + h


class UNet(nn.Module):
    """Noisy picture, timestep and conditions → the network's raw output."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        x_BHWC: Array,
        t: Array,
        time_condition: Array | None = None,
        context: Array | Mapping[str, Array] | None = None,
        context_mask: Array | None = None,
        known: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """
        Args:
            x_BHWC: [B, H, W, C] float32, C = in_channels, or less those of `known`; H and W
                divisible by patch_size * 2 ** (levels - 1).
            t: [B] int32, original timestep index.
            time_condition: [B, time_width] added to the time embedding.
            context: [B, S, context_width] tokens for the attention, or `project_context` of them.
            context_mask: [B, S] bool, False where a token must not be attended to.
            known: [B, H, W, 4] float32, further channels of an inpainting network, see `known.py`;
                the first convolution reads them after all of x, with weights that begin at zero.
        Returns:
            [B, H, W, out_channels] float32.
        """
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        res_block = rematerialized(ResBlock, c.remat)
        attention_block = rematerialized(AttentionBlock, c.remat)
        levels = len(c.channel_mult)

        def residual(name: str, width: int, h: Array, resample: str | None = None) -> Array:
            return res_block(c, width, resample, train, name=name)(h, time)  # type: ignore[arg-type]

        def attend(name: str, h: Array) -> Array:
            tokens, kv = (None, context[name]) if isinstance(context, Mapping) else (context, None)
            return attention_block(c, name=name)(h, tokens, context_mask, kv)

        time = timestep_embedding(t, c.sinusoids)
        time = nn.silu(Dense(c.time_width, dtype=dtype, name="time_in")(time))
        time = Dense(c.time_width, dtype=dtype, name="time_out")(time)
        if time_condition is not None:
            time = time + time_condition.astype(dtype)

        x = space_to_depth(x_BHWC, c.patch_size)
        kernel_init = zero_after(x.shape[-1])
        if known is not None:  # cut into patches by itself: the kernel's part for x stays as it is
            x = jnp.concatenate([x, space_to_depth(known, c.patch_size)], axis=-1)
        first = Conv(
            c.channels * c.channel_mult[0],
            (3, 3),
            padding=1,
            dtype=dtype,
            kernel_init=kernel_init,
            name="conv_in",
        )
        h = first(x)
        skips = [h]
        for level, mult in enumerate(c.channel_mult):
            for i in range(c.level_depth(level)):
                h = residual(f"down{level}_block{i}", c.channels * mult, h)
                if c.attends(level):
                    h = attend(f"down{level}_attention{i}", h)
                skips.append(h)
            if level < levels - 1:
                h = residual(f"down{level}_downsample", c.channels * mult, h, "down")
                skips.append(h)

        widest = c.channels * c.channel_mult[-1]
        h = residual("middle_block0", widest, h)
        if c.has_middle_attention:
            h = attend("middle_attention", h)
        h = residual("middle_block1", widest, h)

        for level in reversed(range(levels)):
            width = c.channels * c.channel_mult[level]
            for i in range(c.level_depth(level) + 1):
                h = residual(f"up{level}_block{i}", width, jnp.concatenate([h, skips.pop()], -1))
                if c.attends(level):
                    h = attend(f"up{level}_attention{i}", h)
            if level:
                h = residual(f"up{level}_upsample", width, h, "up")

        h = nn.silu(GroupNorm(c.groups, name="norm_out")(h))
        out_channels = c.out_channels * c.patch_size**2
        h = Conv(
            out_channels, (3, 3), padding=1, kernel_init=nn.initializers.zeros, name="conv_out"
        )(h)
        return depth_to_space(h, c.patch_size).astype(jnp.float32)


def project_context(config: UNetConfig, params: Any, context_BSD: Array) -> dict[str, Array]:
    """Keys and values of the context, for each attention block of a U-Net by its name.

    Args:
        params: of the `UNet`.
        context_BSD: [B, S, context_width].
    Returns:
        each [B, S, 2 * channels], compute dtype.
    """

    def project(block: Any) -> Array:
        layer = Dense(block["bias"].shape[0], dtype=jnp.dtype(config.dtype))
        projected: Any = layer.apply({"params": block}, context_BSD)
        return projected

    return {name: project(p[CONTEXT_KV]) for name, p in params.items() if CONTEXT_KV in p}


def space_to_depth(x_BHWC: Array, size: int) -> Array:
    """[B, H, W, C] → [B, H/size, W/size, size * size * C]; the columns of a patch are adjacent."""
    batch, height, width, channels = x_BHWC.shape
    x = x_BHWC.reshape(batch, height // size, size, width // size, size, channels)
    return jnp.swapaxes(x, 2, 3).reshape(batch, height // size, width // size, -1)


def depth_to_space(x_BHWC: Array, size: int) -> Array:
    """The inverse of `space_to_depth`."""
    batch, height, width, channels = x_BHWC.shape
    x = x_BHWC.reshape(batch, height, width, size, size, channels // size**2)
    return jnp.swapaxes(x, 2, 3).reshape(batch, height * size, width * size, -1)


def _resample(x_BHWC: Array, direction: Literal["down", "up"]) -> Array:
    """Mean of 2 x 2 pixels, or each pixel four times."""
    if direction == "down":
        return nn.avg_pool(x_BHWC, (2, 2), strides=(2, 2))
    return jnp.repeat(jnp.repeat(x_BHWC, 2, axis=1), 2, axis=2)
