"""Any picture through the upsamplers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unclip_jax.data.images import MAX_PIXELS
from unclip_jax.editing.facts import edit_facts
from unclip_jax.editing.job import Job, clip_squares, ranked, unit
from unclip_jax.editing.pixel_settings import Upscale
from unclip_jax.errors import UserError
from unclip_jax.generation.bundle import UPSAMPLED, Bundle
from unclip_jax.models.upsampler import FACTOR
from unclip_jax.samples import Samples

WHOLE = 1024 * 1024
"""Pixels up to which a picture is drawn whole; the networks were trained for no more."""
TILE = 512
"""Side of the tiles of a larger one."""


def draw_upscaled(
    job: Job, edit: Upscale, num_images: int | None, indices: Sequence[int] | None
) -> Samples:
    """See `draw_edit`: the picture at `edit.factor` times its sides, the nearest to it first.

    Raises:
        UserError: an upsampler that is missing, or a result that no file could hold.
    """
    picture, bundle = job.pictures[0], job.bundle
    height, width = (edit.factor * side for side in picture.shape[:2])
    if height * width > MAX_PIXELS:
        raise UserError(
            f"the picture would have {width} x {height} pixels, the limit is {MAX_PIXELS} in all: "
            "give a smaller one" + (", or factor 4" if edit.factor == 16 else "")
        )
    count = 1 if num_images is None else num_images
    if count < 1:
        raise UserError(f"num_images is {count}: give 1 or more")
    numbers = np.arange(count) if indices is None else np.asarray(indices)
    sizes = upsamplers_of(bundle, min(picture.shape[:2]), edit.factor)
    how = job.sampling
    if how.tile is None and height * width > WHOLE:
        how = replace(how, tile=TILE)
    job = replace(job, sampling=how, upsample=sizes[-1])
    images = np.repeat(_padded(picture, _multiple(bundle, sizes))[None], len(numbers), axis=0)
    for stage, size in enumerate(sizes, 2):
        keys = job.keys(numbers, stage)
        images = bundle.upsample(images, keys, size, how, as_float=size != sizes[-1])
    images = np.ascontiguousarray(images[:, :height, :width])
    names = ["clip", *(f"upsampler_{size}" for size in sizes)]
    facts = edit_facts(job, edit, job.pictures, names, numbers)

    def score() -> np.ndarray:
        found = bundle.encode_image(clip_squares(bundle, list(images)))
        return unit(found) @ unit(job.embeddings)[0]

    return ranked(images, facts, score)


def upsamplers_of(bundle: Bundle, side: int, factor: int) -> list[int]:
    """Which upsamplers multiply a picture's sides by `factor`, by their names.

    Args:
        side: the shorter one; 4 times takes the upsampler that was trained for the nearest side.
    """
    found: list[int]
    if factor == FACTOR**2:
        found = [*UPSAMPLED]
    else:
        has = [size for size in UPSAMPLED if f"upsampler_{size}" in bundle.stages]

        def distance(size: int) -> float:
            recipe: Any = bundle.stage(f"upsampler_{size}").recipe
            return abs(math.log(FACTOR * side / recipe.data.image_size))

        found = [min(has or UPSAMPLED[:1], key=distance)]
    for size in found:
        bundle.stage(f"upsampler_{size}")
    return found


def _multiple(bundle: Bundle, sizes: Sequence[int]) -> int:
    """What a picture's sides must be divisible by to go through these upsamplers."""
    units = []
    for number, size in enumerate(sizes, 1):
        recipe: Any = bundle.stage(f"upsampler_{size}").recipe
        units.append(recipe.model.multiple // math.gcd(recipe.model.multiple, FACTOR**number))
    return math.lcm(*units)


def _padded(picture: np.ndarray, multiple: int) -> np.ndarray:
    """[H, W, 3] uint8, continued by its reflection to multiples on both sides."""
    rows, columns = (-side % multiple for side in picture.shape[:2])
    return np.pad(picture, ((0, rows), (0, columns), (0, 0)), mode="symmetric")
