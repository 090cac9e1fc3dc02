"""The extractors: Inception as FID uses it, a model's CLIP, and any function of pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from unclip_jax.clip_tools.encoding import clip_config
from unclip_jax.data.images import resize_and_crop
from unclip_jax.evaluation.features import Extractor
from unclip_jax.evaluation.inception import SIDE, WIDTH, Inception
from unclip_jax.generation.bundle import Bundle
from unclip_jax.generation.programs import image_program
from unclip_jax.generation.rows import RowProgram, RowRunner, Rows
from unclip_jax.training.weights import weights_id


def inception_extractor(params: Any, batch_size: int = 16) -> Extractor:
    """`pool3` of Inception after clean-fid's resizing (Parmar et al. 2022).

    Args:
        params: of `Inception`, see `load_inception`.
        batch_size: rows a device.
    """

    def run(params: Any, rows: Rows) -> Array:
        return Inception().apply({"params": params["inception"]}, rows["picture"])  # type: ignore

    program = RowProgram("inception", "inception", ("inception",), run)
    runner = RowRunner({"inception": params}, {})
    return Extractor(
        name="inception",
        key=f"inception-{weights_id(params)}-clean299",
        width=WIDTH,
        batch=batch_size * runner.mesh.size,
        prepare=prepare_for_inception,
        embed=lambda rows: runner.start(program, _rows("picture", rows)),
    )


def clip_extractor(bundle: Bundle, batch_size: int | None = None) -> Extractor:
    """The image tower of a model's CLIP at its own side; features of unit norm.

    Args:
        batch_size: rows a device; None is the model's own.
    """
    config, tower = clip_config(bundle), image_program(bundle.stage)

    def run(params: Any, rows: Rows) -> Array:
        found = tower.run(params, rows)
        return found / jnp.maximum(jnp.linalg.norm(found, axis=-1, keepdims=True), 1e-12)

    program = RowProgram("clip", "unit image", tower.stages, run)
    return Extractor(
        name="clip",
        key=f"clip-{bundle.clip.clip_id}-{config.image_size}",
        width=config.embedding_width,
        batch=(batch_size or bundle.sampling.batch_size) * bundle.runner.mesh.size,
        prepare=lambda picture: resize_and_crop(picture, config.image_size),
        embed=lambda rows: bundle.runner.start(program, _rows("image", rows)),
    )


def function_extractor(
    name: str, function: Callable[[np.ndarray], Any], side: int, batch_size: int = 64
) -> Extractor:
    """Any function of pictures, of numpy or of JAX.

    Args:
        name: also what its features are cached under: give another function another one.
        function: [B, side, side, 3] uint8 → [B, D]; called with `batch_size` rows always.
        side: the pictures' central squares are brought to it.
    """
    width = np.asarray(function(np.zeros((batch_size, side, side, 3), np.uint8))).shape[-1]
    return Extractor(
        name=name,
        key=f"{name}-{side}",
        width=width,
        batch=batch_size,
        prepare=lambda picture: resize_and_crop(picture, side),
        embed=function,
    )


def prepare_for_inception(picture: np.ndarray) -> np.ndarray:
    """The central square at 299 × 299, as clean-fid resizes: every channel alone in float, by
    Pillow's antialiased bicubic filter, and clipped, but not rounded.

    Pictures are 8-bit before, as the published numbers have them; of one that is not square the
    centre is taken (GLIDE, unCLIP) rather than squeezed.

    Args:
        picture: [H, W, 3] uint8.
    Returns:
        [299, 299, 3] float32, 0 ... 255.
    """
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    square = picture[top : top + side, left : left + side].astype(np.float32)
    channels = [
        Image.fromarray(np.ascontiguousarray(square[..., channel])).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)


def _rows(name: str, rows: np.ndarray) -> Rows:
    """All of them count: padding is dropped from the result."""
    return {name: rows, "is_real": np.ones(len(rows), bool)}
