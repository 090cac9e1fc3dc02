"""Networks that are too large to be built are refused when their config is made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unclip_jax.errors import UserError
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig

SMALL = TransformerConfig(width=16, depth=1, heads=2)


def test_a_picture_has_65536_patches_at_most() -> None:
    clip = CLIPConfig(image_size=1024, patch_size=4, vision=SMALL, text=SMALL)
    with pytest.raises(UserError, match="image_size 1024 in patches of 2 gives more than 65536"):
        replace(clip, patch_size=2)


def test_a_unet_has_256_residual_blocks_at_most() -> None:
    levels = len(UNetConfig().channel_mult)
    replace(UNetConfig(), depth=(256 // levels,))
    with pytest.raises(UserError, match="blocks: give 256 or fewer"):
        replace(UNetConfig(), depth=(256 // levels + 1,))
    with pytest.raises(UserError, match="blocks: give 256 or fewer"):
        replace(UNetConfig(), depth=(258 - levels, *[1] * (levels - 1)))
