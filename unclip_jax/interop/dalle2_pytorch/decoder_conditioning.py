"""The low-resolution image that an upsampler is given: resized, blurred, noised, cropped.

In training it is made from the image itself; in sampling it is the stage before, resized and,
where the stage has it, noised to a fixed level. Every random choice is an argument, and one of each
sample; the original made some of them once for a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.interop.dalle2_pytorch.decoder_config import (
    LOWRES_NOISE_STEPS,
    DecoderConfig,
    lowres_noise_schedule,
)

_Number = TypeVar("_Number", int, float)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowresDraws:
    """The random choices of one batch. Fields that a stage does not use may be None."""

    blurred: Array
    """[B] bool."""
    sigma: Array
    """[B] float32, of the blur in pixels."""
    kernel_size: Array
    """[B] int32."""
    level: Array | None = None
    """[B] int32 in [0, 1000), how much noise."""
    noise: Array | None = None
    """[B, H, W, C] standard normal, of the target size."""


def draw_lowres(
    config: DecoderConfig, stage: int, key: Array, shape: tuple[int, ...]
) -> LowresDraws:
    """Choices as training makes them, independently for every sample.

    Args:
        shape: [B, H, W, C] of the low-resolution image at its target size.
    """
    keys, batch = jax.random.split(key, 5), shape[:1]
    lowest, largest = _range(config.blur_sigma)
    sizes = _range(config.blur_kernel_size)
    uses = config.stages[stage]
    return LowresDraws(
        jax.random.bernoulli(keys[0], config.blur_prob, batch),
        jax.random.uniform(keys[1], batch, minval=lowest, maxval=largest),
        jax.random.randint(keys[2], batch, sizes[0], sizes[1] + 1),
        jax.random.randint(keys[3], batch, 0, LOWRES_NOISE_STEPS) if uses.use_noise else None,
        jax.random.normal(keys[4], shape) if uses.use_noise else None,
    )


def lowres_condition(config: DecoderConfig, stage: int, image: Array, draws: LowresDraws) -> Array:
    """What stage `stage` >= 1 is conditioned on in training, made from the image.

    Args:
        image: [B, H, W, C] float32 in the config's image range, at least as large as the stage.
    Returns:
        [B, S, S, C] in the same range; noise may leave it.
    """
    one, value_range = config.stages[stage], config.image_range
    if config.lowres_downsample_first:
        image = resized(image, config.stages[stage - 1].image_size, value_range)
    if one.use_blur:
        largest = int(_range(config.blur_kernel_size)[1])
        blurred = blur(image, draws.sigma, draws.kernel_size, largest)
        image = jnp.where(draws.blurred[:, None, None, None], blurred, image)
    image = resized(image, one.image_size, value_range)
    if one.use_noise:
        assert draws.level is not None and draws.noise is not None
        image = noised(config, image, draws.level, draws.noise)
    return image


def noised(config: DecoderConfig, image: Array, level: Array, noise: Array) -> Array:
    """x_level of an image outside the network's range, and outside it again."""
    return from_network(
        config, lowres_noise_schedule().q_sample(to_network(config, image), level, noise)
    )


def resized(image: Array, size: int, value_range: tuple[float, float] | None = None) -> Array:
    """Nearest neighbours as PyTorch chooses them, floor(i * in / out); clamped where it resizes.

    Args:
        image: [B, H, W, ...], of which nothing changes where W is `size`.
    """
    if image.shape[2] == size:
        return image
    rows, columns = (
        np.floor(np.arange(size, dtype=np.float32) * np.float32(side / size)).astype(np.int32)
        for side in image.shape[1:3]
    )
    image = image[:, np.minimum(rows, image.shape[1] - 1)]
    image = image[:, :, np.minimum(columns, image.shape[2] - 1)]
    return image if value_range is None else jnp.clip(image, *value_range)


def blur(image: Array, sigma: Array, kernel_size: Array, largest: int) -> Array:
    """A Gaussian of its own for every sample, mirrored at the edges without repeating them.

    Args:
        image: [B, H, W, C] float32.
        sigma: [B] float32 in pixels.
        kernel_size: [B] int32, at most `largest`; taps of an even one reach further right.
    """
    before = (largest - 1) // 2
    offset = jnp.arange(-before, largest - before)
    front = (kernel_size[:, None] - 1) // 2
    inside = (offset >= -front) & (offset < kernel_size[:, None] - front)
    centre = jnp.where(kernel_size % 2 == 0, 0.5, 0.0)[:, None]
    taps = jnp.where(inside, jnp.exp(-((offset - centre) ** 2) / (2 * sigma[:, None] ** 2)), 0.0)
    taps = taps / taps.sum(axis=1, keepdims=True)
    pad = (before, largest - 1 - before)
    for axis in (1, 2):
        size = image.shape[axis]
        widths = [pad if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(image, widths, mode="reflect")
        image = sum(
            taps[:, i, None, None, None] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i in range(largest)
        )  # pyright: ignore[reportAssignmentType]
    return image


def cropped(image: Array, corner: Array, size: int) -> Array:
    """[B, size, size, C] from [B, H, W, C]; corner is [B, 2] int32, its first row and column."""

    def crop(one: Array, at: Array) -> Array:
        return jax.lax.dynamic_slice(one, (at[0], at[1], 0), (size, size, one.shape[-1]))

    return jax.vmap(crop)(image, corner)


def to_network(config: DecoderConfig, image: Array) -> Array:
    """[0, 1] to [-1, 1], or nothing where the config says that images are so already."""
    return image * 2 - 1 if config.auto_normalize_img else image


def from_network(config: DecoderConfig, image: Array) -> Array:
    """The way back."""
    return (image + 1) * 0.5 if config.auto_normalize_img else image


def _range(value: _Number | tuple[_Number, _Number]) -> tuple[_Number, _Number]:
    return value if isinstance(value, tuple) else (value, value)
