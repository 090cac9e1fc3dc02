"""What an inpainting network is told of the picture: four more channels (Nichol et al. 2021, 2.1).

The kept part, zero in the hole, and a channel that is 1 where the picture is kept. The weights that
read them begin at zero, so that a fine-tune begins as the network that it starts from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError

KNOWN_CHANNELS = 4


def known_channels(images: Array, keep: Array) -> Array:
    """The four channels.

    Args:
        images: [B, H, W, 3] float32 in [-1, 1]; what it holds in the hole is not read.
        keep: [B, H, W, 1] bool, True where the picture is kept.
    Returns:
        [B, H, W, 4] float32.
    """
    return jnp.concatenate([jnp.where(keep, images, 0), keep.astype(images.dtype)], axis=-1)


def known_or_nothing(known: Array | None, x_BHWC: Array, *, is_inpainting: bool) -> Array | None:
    """The four channels that a network of `is_inpainting` reads beside x: those given, or zeros,
    which say that nothing is known; None for another network.

    Raises:
        UserError: a network that reads none is given some.
    """
    if not is_inpainting:
        if known is not None:
            raise UserError(
                "this network was not trained to see a known part (model.is_inpainting is False): "
                "give none, or load the one that was"
            )
        return None
    return jnp.zeros((*x_BHWC.shape[:3], KNOWN_CHANNELS), x_BHWC.dtype) if known is None else known


def zero_after(channels: int) -> Callable[..., Any]:
    """A kernel's initialiser: Flax's own for the first input channels, zero for those after."""

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        kernel = nn.initializers.lecun_normal()(key, (*shape[:-2], channels, shape[-1]), dtype)
        zeros = jnp.zeros((*shape[:-2], shape[-2] - channels, shape[-1]), dtype)
        return jax.lax.concatenate([kernel, zeros], len(shape) - 2)

    return init
