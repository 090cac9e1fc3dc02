"""What the pictures of an edit were made from, as it is written into their files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from unclip_jax.config import to_dict
from unclip_jax.editing.job import Job
from unclip_jax.editing.pixel_settings import PixelEdit, Upscale
from unclip_jax.editing.settings import CompareConditioning, Diff, LatentEdit, Mix, Vary
from unclip_jax.generation.facts import relevant_sampling
from unclip_jax.generation.programs import PRIORS

_UPSCALING = ("batch_size", "tile", "tile_overlap", "dtype")


def edit_facts(
    job: Job,
    edit: LatentEdit | PixelEdit,
    inputs: Sequence[np.ndarray],
    stages: Sequence[str],
    numbers: np.ndarray,
) -> list[dict[str, Any]]:
    """The facts of each picture, which JSON can hold.

    Args:
        inputs: the pictures that it started from, and of `Inpaint` the mask.
        stages: those that draw or rank, beside the prior that the job names; the second network of
            an upsampler is added.
        numbers: [N] int, indices of the pictures.
    """
    names = {*stages, *(PRIORS[job.prior] for _ in range(job.prior != "none"))}
    names |= {f"{name}_last" for name in names if f"{name}_last" in job.bundle.stages}
    sampling = relevant_sampling(job.sampling, job.prior, job.upsample)
    if isinstance(edit, Upscale):
        keep = (*_UPSCALING, "upsample_batch_size", *(n for n in names if n in sampling))
        sampling = {name: value for name, value in sampling.items() if name in keep}
    same = {
        "model": job.bundle.name.rsplit("/", 1)[-1],
        "verb": edit.verb,
        "prompt": words_of(edit),
        "seed": job.seed,
        "edit": to_dict(edit),
        "inputs": [picture_id(one) for one in inputs],
        "prior": job.prior,
        "upsample": job.upsample,
        "sampling": sampling,
        "weights": {name: job.bundle.stage_id(name) for name in sorted(names)},
    }
    return [{**same, "index": int(number)} for number in numbers]


def picture_id(picture: np.ndarray) -> str:
    """16 hex digits that name a picture by its pixels, however its file is written.

    Args:
        picture: [H, W, 3] uint8, or a mask [H, W] bool.
    """
    head = f"{picture.shape}\n".encode()
    return hashlib.sha256(head + np.ascontiguousarray(picture).tobytes()).hexdigest()[:16]


def words_of(edit: LatentEdit | PixelEdit) -> str:
    """The text of an edit, for its file's name and for people."""
    if isinstance(edit, CompareConditioning):
        return edit.prompt
    if isinstance(edit, Diff):
        return edit.to
    if isinstance(edit, Mix):
        return edit.caption or " and ".join(edit.texts)
    if isinstance(edit, Vary):
        return edit.caption
    return getattr(edit, "prompt", "")
