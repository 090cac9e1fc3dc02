"""Which pixels of a photo are painted anew: white in a mask, or transparent (DALL-E 2's API)."""

from __future__ import annotations

import numpy as np

from unclip_jax.data.images import decode_with_alpha
from unclip_jax.errors import UserError

HALF = 128
"""From here on a mask is white, and a pixel opaque."""


def read_mask(data: bytes, *, name: str) -> np.ndarray:
    """The mask that a picture holds: what is transparent in it, or what is white if nothing is.

    Args:
        data: the file; name: what messages call it.
    Returns:
        [H, W] bool, True is to be painted.
    Raises:
        BadImage: see `decode_image`.
    """
    pixels, alpha = decode_with_alpha(data, name=name)
    is_clear = alpha < HALF
    return is_clear if is_clear.any() else pixels.mean(axis=-1) >= HALF


def read_photo_with_hole(data: bytes, *, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A photo [H, W, 3] uint8 and the mask [H, W] bool that is its own transparency.

    Raises:
        UserError: nothing in it is transparent.
    """
    pixels, alpha = decode_with_alpha(data, name=name)
    if not (alpha < HALF).any():
        raise UserError(
            f"{name} has no transparent part: erase what is to be painted, or name a mask with "
            "white there"
        )
    return pixels, alpha < HALF


def check_mask(photo: np.ndarray, mask: np.ndarray, *, name: str = "the mask") -> None:
    """UserError unless the mask lies on the photo; `name` is what the message calls it."""
    if mask.ndim != 2 or mask.dtype != bool:
        raise UserError(f"{name} is {mask.dtype} {mask.shape}: give [H, W] bool")
    if mask.shape != photo.shape[:2]:
        sides = [" x ".join(map(str, one.shape[1::-1])) for one in (mask, photo)]
        raise UserError(
            f"{name} has {sides[0]} pixels and the photo {sides[1]}: give a mask of the photo's "
            "size"
        )
