"""ADM's networks as they were published: a U-Net with classes, and with a small picture.

Dhariwal & Nichol 2021 (arXiv 2105.05233), released code. The class enters as a learned vector that
is added to the time embedding; an upsampler sees the small picture, brought to full size, as three
more channels. The classifiers are `models.classifier.Classifier`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.unet import UNet, UNetConfig
from unclip_jax.models.upsampler import resize_low_resolution


@dataclass(frozen=True)
class ADMConfig:
    """Shape of a diffusion model of ADM. The default is ImageNet at 64 x 64."""

    unet: UNetConfig = UNetConfig()
    num_classes: int | None = 1000
    """None for a model without classes."""
    is_upsampler: bool = False
    """Half of the U-Net's input channels are those of a small picture."""

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 1:
            raise UserError(f"num_classes is {self.num_classes}: give 1 or more, or None")
        if self.unet.context_width is not None:
            raise UserError(
                f"unet.context_width is {self.unet.context_width}: ADM reads no text, give None"
            )
        if self.is_upsampler and self.unet.in_channels % 2:
            raise UserError(
                f"unet.in_channels is {self.unet.in_channels}: an upsampler needs an even number, "
                "half of it for the small picture"
            )


class ADM(nn.Module):
    """Noisy picture, timestep, class and small picture → the U-Net's raw output."""

    config: ADMConfig

    @nn.compact
    def __call__(
        self,
        x_BHWC: Array,
        t: Array,
        labels: Array | None = None,
        low_resolution_BHWC: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """
        Args:
            x_BHWC: [B, H, W, C] float32, the noisy picture.
            t: [B] int32, original timestep index.
            labels: [B] int32 in [0, num_classes); needed if there are classes, else None.
            low_resolution_BHWC: [B, h, w, C] float32 in [-1, 1] of any size up to H x W; needed by
                an upsampler, else None.
        Returns:
            [B, H, W, out_channels] float32.
        Raises:
            UserError: an input is missing, or there is one that the network does not have.
        """
        c = self.config
        check_given("labels", labels, c.num_classes is not None)
        check_given("a small picture", low_resolution_BHWC, c.is_upsampler)
        condition = None
        if c.num_classes is not None:
            table = nn.Embed(c.num_classes, c.unet.time_width, name="label_embedding")
            condition = table(jnp.asarray(labels))
        if low_resolution_BHWC is not None:
            height, width = x_BHWC.shape[1:3]
            resized = resize_low_resolution(low_resolution_BHWC, (height, width), "linear")
            x_BHWC = jnp.concatenate([x_BHWC, resized], axis=-1)
        return UNet(c.unet, name="unet")(x_BHWC, t, condition, train=train)


def check_given(name: str, value: Array | None, is_needed: bool) -> None:
    """UserError unless an input is there exactly where it is needed."""
    if (value is not None) != is_needed:
        expected = "give it" if is_needed else "leave it out"
        raise UserError(
            f"this network {'needs' if is_needed else 'does not read'} {name}: {expected}"
        )
