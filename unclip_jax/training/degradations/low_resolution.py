"""What an upsampler is trained on: a crop, and the small and slightly spoiled picture of it.

Ramesh et al. 2022, section 2.1: crops of a quarter of the side; the small picture is blurred for
64 → 256 (3 × 3 Gaussian of deviation 0.6, as in SR3) and degraded by BSR-light for 256 → 1024. With
that an upsampler learns to correct what the stage before it, which is no camera, does to a picture.

All are pure functions in JAX that run inside the training step; row i of a batch depends on the key
and on i alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.upsampler import FACTOR
from unclip_jax.training.degradations.bsr import bsr_light

Downsampling = Literal["area", "cubic"]


@dataclass(frozen=True)
class DegradationConfig:
    """How the small picture of a training pair is made."""

    kind: Literal["none", "blur", "bsr"] = "blur"
    """none only makes it small; blur is the paper's 64 → 256, bsr its 256 → 1024."""
    downsampling: Downsampling = "area"
    """The filter of pictures that are only made small, and before a blur: means of 4 × 4 pixels, or
    the antialiased cubic. bsr draws its own filters."""
    blur_side: int = 3
    """Taps of the blur."""
    blur_sigma: tuple[float, float] = (0.6, 0.6)
    """The blur's deviation in pixels of the small picture, drawn from this range."""
    blur_share: float = 0.5
    """Share of the small pictures that are blurred. The paper says "slightly corrupt" and gives no
    share; 1 teaches the network to sharpen every picture, also one that is sharp."""
    bsr_share: float = 1.0
    """Share of the small pictures that bsr degrades; the others are only made small. The paper
    degrades and gives no share; a network that never saw a clean picture draws halos around the
    edges of one."""

    def __post_init__(self) -> None:
        low, high = self.blur_sigma if len(self.blur_sigma) == 2 else (0, 0)
        if not 0 < low <= high:
            raise UserError(
                f"blur_sigma is {self.blur_sigma}: give two positive numbers, the smaller first"
            )
        if self.blur_side < 1 or self.blur_side % 2 == 0:
            raise UserError(f"blur_side is {self.blur_side}: give an odd number")
        for name in ("blur_share", "bsr_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: give a share between 0 and 1")


def random_crop(key: Array, images: Array, size: int) -> Array:
    """A random square of each picture.

    Args:
        key: typed key.
        images: [B, H, W, C] of any type.
        size: side of the square; the paper takes a quarter of the picture's.
    Returns:
        [B, size, size, C] of the same type.
    Raises:
        UserError: a square that is larger than the pictures.
    """
    rows, height, width, channels = images.shape
    if not 0 < size <= min(height, width):
        raise UserError(f"the crop's side is {size}: pictures are {height} × {width}")

    def crop(key: Array, image: Array) -> Array:
        limits = jnp.array([height - size + 1, width - size + 1])
        top, left = jax.random.randint(key, (2,), 0, limits)
        return jax.lax.dynamic_slice(image, (top, left, 0), (size, size, channels))

    return jax.vmap(crop)(_row_keys(key, rows), images)


def make_low_resolution(key: Array, crop: Array, config: DegradationConfig) -> Array:
    """The small picture that an upsampler gets for `crop` in training.

    Args:
        key: typed key.
        crop: [B, H, W, 3] float32 in [-1, 1], sides divisible by 4.
    Returns:
        [B, H/4, W/4, 3] float32 in [-1, 1].
    Raises:
        UserError: sides that are not divisible by 4.
    """
    keys = _row_keys(key, crop.shape[0])
    if config.kind == "bsr" and config.bsr_share == 1:
        return _bsr_rows(keys, crop)
    small = downsample(crop, FACTOR, config.downsampling)
    if config.kind == "none":
        return small
    if config.kind == "bsr":
        share_key, key = jax.random.split(key)
        share_keys = _row_keys(share_key, crop.shape[0])
        is_degraded = jax.vmap(lambda key: jax.random.bernoulli(key, config.bsr_share))(share_keys)
        degraded = _bsr_rows(_row_keys(key, crop.shape[0]), crop)
        return jnp.where(is_degraded[:, None, None, None], degraded, small)

    def draw(key: Array) -> tuple[Array, Array]:
        sigma_key, share_key = jax.random.split(key)
        low, high = config.blur_sigma
        sigma = jax.random.uniform(sigma_key, minval=low, maxval=high)
        return sigma, jax.random.bernoulli(share_key, config.blur_share)

    sigma, is_blurred = jax.vmap(draw)(keys)
    blurred = gaussian_blur(small, sigma, config.blur_side)
    return jnp.where(is_blurred[:, None, None, None], blurred, small)


def downsample(images: Array, factor: int, method: Downsampling = "area") -> Array:
    """Pictures of 1/factor of the side, antialiased; the same in training and in evaluation.

    Args:
        images: [B, H, W, C] float32 in [-1, 1].
        factor: what the sides are divided by.
        method: area is the mean of factor × factor pixels; cubic is Keys' with a = -1/2, widened by
            the factor and clipped to [-1, 1], which it overshoots.
    Returns:
        [B, H/factor, W/factor, C] float32.
    Raises:
        UserError: sides that are not divisible by the factor.
    """
    batch, height, width, channels = images.shape
    if height % factor or width % factor:
        raise UserError(
            f"pictures are {height} × {width}: their sides must be divisible by {factor}"
        )
    size = (height // factor, width // factor)
    if method == "cubic":
        small = jax.image.resize(images, (batch, *size, channels), "cubic")
        return jnp.clip(small, -1, 1)
    return images.reshape(batch, size[0], factor, size[1], factor, channels).mean(axis=(2, 4))


def gaussian_blur(images: Array, sigma: Array, side: int) -> Array:
    """Each picture convolved with a normalised Gaussian, mirrored at its borders.

    Args:
        images: [B, H, W, C] float32; H and W larger than side // 2.
        sigma: [B] float32, positive, in pixels.
        side: odd number of taps in each direction.
    Returns:
        [B, H, W, C] float32.
    """
    reach = side // 2
    distance = jnp.arange(-reach, reach + 1)
    weights = jax.nn.softmax(-(distance**2) / (2 * sigma[:, None] ** 2), axis=-1)
    for axis in (1, 2):
        length = images.shape[axis]
        pad = [(reach, reach) if dim == axis else (0, 0) for dim in range(4)]
        padded = jnp.pad(images, pad, mode="reflect")
        images = sum(
            (
                weights[:, tap, None, None, None]
                * jax.lax.slice_in_dim(padded, tap, tap + length, axis=axis)
                for tap in range(side)
            ),
            start=jnp.zeros_like(images),
        )
    return images


def augment(low_res: Array, level: Array, noise: Array) -> Array:
    """Noise-conditioning augmentation (Ho et al. 2022; Saharia et al. 2022, section 2.4).

    q(x_s | x_0) of the continuous cosine schedule: cos(pi s / 2) x_0 + sin(pi s / 2) noise, which
    keeps the variance and leaves the picture as it is at s = 0.

    Args:
        low_res: [B, h, w, 3] float32 in [-1, 1].
        level: [B] float32 in [0, 1], s.
        noise: [B, h, w, 3] float32, standard normal.
    Returns:
        [B, h, w, 3] float32.
    """
    angle = jnp.pi / 2 * level[:, None, None, None]
    return jnp.cos(angle) * low_res + jnp.sin(angle) * noise


def _row_keys(key: Array, rows: int) -> Array:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def _bsr_rows(keys: Array, crop: Array) -> Array:
    """`bsr_light` of each row. Rows draw different operations: side by side each computes all of
    them and keeps one, in turn only its own. On two CPU cores 16 crops of 256 pixels take 3.7 s
    side by side and 0.65 s in turn; an accelerator has the room and not the patience."""

    def in_turn(keys: Array, crop: Array) -> Array:
        return jax.lax.map(lambda row: bsr_light(*row), (keys, crop))

    return jax.lax.platform_dependent(keys, crop, cpu=in_turn, default=jax.vmap(bsr_light))
