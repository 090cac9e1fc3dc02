"""The upsamplers 64 → 256 → 1024: ADM's U-Net without attention, conditioned on the small picture.

Ramesh et al. 2022, section 2.1: the small picture is resized and joins x_t as three more channels;
neither the caption nor the CLIP embedding enters, and there is no guidance. Convolutions alone let
a network that is trained on crops of a quarter of the side run at the full side.

What a crop does not teach are the statistics of a whole picture: GroupNorm takes mean and variance
over all positions it is given. The paper found that this carries over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.known import KNOWN_CHANNELS, known_or_nothing
from unclip_jax.models.layers import Dense, timestep_embedding
from unclip_jax.models.limits import check_sizes
from unclip_jax.models.unet import UNet, UNetConfig

FACTOR = 4
"""What every upsampler multiplies the side by."""

Resize = Literal["linear", "cubic"]


@dataclass(frozen=True)
class UpsamplerConfig:
    """The U-Net, and how the small picture enters. The defaults are the paper's 64 → 256."""

    unet: UNetConfig = UNetConfig(
        image_size=256,
        in_channels=6,
        channels=320,
        attention_resolutions=(),
        has_middle_attention=False,
        dropout=0.1,
    )
    """6 input channels (`is_inpainting`: 10), no attention and no context. "No attention" leaves
    out ADM's middle attention too, which its code always has: it would see a crop in training and
    four times the side in sampling."""
    resize: Resize = "linear"
    """How the small picture comes to full size: linear (ADM, GLIDE) or cubic (Karlo)."""
    has_augmentation: bool = False
    """Noise-conditioning augmentation (Saharia et al. 2022, section 2.4): the small picture is
    noised, and the network is told how much."""
    max_augmentation: float = 1.0
    """Training draws the level from U[0, max]; Imagen has 1. 0 is a clean small picture, 1 noise
    alone."""
    sampling_augmentation: float = 0.1
    """The level in sampling; Imagen sweeps it. It hides what the stage before did wrong."""
    is_inpainting: bool = False
    """The U-Net also reads the known part of the large picture and which pixels it has (GLIDE):
    four more input channels. They come last here: noisy, small, known, mask. GLIDE has the small
    picture after the mask."""

    def __post_init__(self) -> None:
        check_sizes(self)
        channels = 6 + KNOWN_CHANNELS * self.is_inpainting
        if self.unet.in_channels != channels:
            raise UserError(
                f"unet.in_channels is {self.unet.in_channels}: an upsampler with is_inpainting "
                f"{self.is_inpainting} has {channels}, the noisy picture's 3, the small picture's "
                "3 and 4 of a known part"
            )
        levels = range(len(self.unet.channel_mult))
        if self.unet.has_middle_attention or any(self.unet.attends(level) for level in levels):
            raise UserError(
                "unet has attention, but an upsampler is trained on crops and runs at full size: "
                "set attention_resolutions to () and has_middle_attention to False"
            )
        if self.unet.context_width is not None:
            raise UserError(
                f"unet.context_width is {self.unet.context_width}: an upsampler reads no caption, "
                "set it to None"
            )
        if not 0 <= self.sampling_augmentation <= self.max_augmentation <= 1:
            raise UserError(
                f"sampling_augmentation is {self.sampling_augmentation} and max_augmentation "
                f"{self.max_augmentation}: give 0 <= sampling <= max <= 1"
            )

    @property
    def multiple(self) -> int:
        """What the sides of a picture, and of a tile, must be divisible by."""
        return self.unet.patch_size * 2 ** (len(self.unet.channel_mult) - 1)


class Upsampler(nn.Module):
    """Noisy picture, timestep and small picture → the U-Net's raw output."""

    config: UpsamplerConfig

    def setup(self) -> None:
        unet = self.config.unet
        self.unet = UNet(unet)
        if self.config.has_augmentation:
            self.level_in = Dense(unet.time_width, dtype=jnp.dtype(unet.dtype))
            self.level_out = Dense(unet.time_width, dtype=jnp.dtype(unet.dtype))

    def __call__(
        self,
        x_BHWC: Array,
        t: Array,
        low_res_BHWC: Array,
        level: Array | None = None,
        known_BHWC: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """
        Args:
            x_BHWC: [B, H, W, 3] float32, the noisy picture; H and W divisible by config.multiple.
            t: [B] int32, original timestep index.
            low_res_BHWC: [B, H/4, W/4, 3] float32 in [-1, 1].
            level: [B] float32 in [0, 1], how much noise `low_res_BHWC` was given; needed with
                `has_augmentation`, else not read.
            known_BHWC: [B, H, W, 4] float32, `known_channels` of the large picture, where
                config.is_inpainting is set; None says that nothing is known.
        Returns:
            [B, H, W, out_channels] float32.
        Raises:
            UserError: sides that do not fit each other or the network, or a known part for a
                network that reads none.
        """
        height, width = x_BHWC.shape[1:3]
        small = tuple(low_res_BHWC.shape[1:3])
        if (height, width) != (FACTOR * small[0], FACTOR * small[1]):
            raise UserError(
                f"the picture is {height} × {width} and the small one {small[0]} × {small[1]}: "
                f"an upsampler multiplies by {FACTOR}"
            )
        resized = resize_low_resolution(low_res_BHWC, (height, width), self.config.resize)
        return self.denoise(x_BHWC, t, resized, level, known_BHWC, train=train)

    def denoise(
        self,
        x_BHWC: Array,
        t: Array,
        resized_BHWC: Array,
        level: Array | None = None,
        known_BHWC: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """As `__call__`, with the small picture already at full size: what a tile is given.

        Args:
            resized_BHWC: [B, H, W, 3] float32, `resize_low_resolution`'s or a tile of it.
        """
        c = self.config
        height, width = x_BHWC.shape[1:3]
        if height % c.multiple or width % c.multiple:
            raise UserError(
                f"the picture is {height} × {width}: this upsampler needs sides divisible by "
                f"{c.multiple}"
            )
        condition = None
        if c.has_augmentation:
            if level is None:
                raise UserError("this upsampler was trained with augmentation: give it the level")
            condition = timestep_embedding(1000 * level, c.unet.channels)
            condition = self.level_out(nn.silu(self.level_in(condition)))
        x = jnp.concatenate([x_BHWC, resized_BHWC], axis=-1)
        known = known_or_nothing(known_BHWC, x_BHWC, is_inpainting=c.is_inpainting)
        return self.unet(x, t, condition, known=known, train=train)


def resize_low_resolution(low_res: Array, size: tuple[int, int], method: Resize) -> Array:
    """The small picture at the size of the large one; the same in training and in sampling.

    Cubic is Keys' with a = -1/2, and overshoots [-1, 1] at edges; that is not clipped (Karlo).

    Args:
        low_res: [B, h, w, 3] float32.
        size: (H, W).
    Returns:
        [B, H, W, 3] float32.
    """
    return jax.image.resize(low_res, (low_res.shape[0], *size, low_res.shape[-1]), method)
