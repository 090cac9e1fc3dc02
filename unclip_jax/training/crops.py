"""Random square crops of training pictures: CLIP's only augmentation (Radford et al. 2021, 2.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def random_crops(key: Array, images: Array, least: float) -> Array:
    """A square out of every picture, resized to the picture's side (linear, antialiased).

    Args:
        key: typed key; row i depends on it and on i alone.
        images: [B, S, S, C] float32.
        least: the crop's side is drawn uniformly from [least, 1] of the picture's, its place
            uniformly from those inside the picture. 1 is the picture itself.
    Returns:
        [B, S, S, C] float32.
    """
    side = images.shape[1]

    def crop(key: Array, image: Array) -> Array:
        size_key, place_key = jax.random.split(key)
        share = jax.random.uniform(size_key, minval=least, maxval=1.0)
        corner = jax.random.uniform(place_key, (2,)) * (1 - share) * side
        scale = jnp.full(2, 1 / share)
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), scale, -corner * scale, "linear"
        )

    return jax.vmap(crop)(jax.random.split(key, images.shape[0]), images)
