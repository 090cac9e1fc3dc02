"""Edits that choose what the decoder draws from → pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unclip_jax.editing.facts import edit_facts
from unclip_jax.editing.job import Job, clip_squares, ranked, unit
from unclip_jax.editing.latents import latents_of, usable_components
from unclip_jax.editing.settings import (
    CompareConditioning,
    Components,
    Diff,
    Interpolate,
    LatentEdit,
    Mix,
    Reconstruct,
    Vary,
)
from unclip_jax.errors import UserError
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.text_to_image import upsampled_sizes
from unclip_jax.samples import Samples

CONDITIONS = ("caption", "text-embedding", "prior")
"""The frames of `CompareConditioning`, in order."""


def draw_latents(
    job: Job, edit: LatentEdit, num_images: int | None, indices: Sequence[int] | None
) -> Samples:
    """See `draw_edit`: a strip for each candidate, or where a candidate is one picture, those
    nearest to what was asked for first."""
    frames = frames_of(job, edit)
    num_images = _count(edit, job.sampling, num_images)
    numbers = np.arange(num_images * frames) if indices is None else np.asarray(indices)
    images = _decode(job, edit, numbers % frames, numbers // frames)
    facts = edit_facts(job, edit, job.pictures, _stages(job, edit), numbers)
    if frames > 1:
        return Samples(images, None, tuple(facts), frames=frames)
    return ranked(images, facts, lambda: score(job, edit, images))


def frames_of(job: Job, edit: LatentEdit) -> int:
    """Pictures of one candidate."""
    if isinstance(edit, Interpolate | Diff):
        return edit.frames
    if isinstance(edit, Reconstruct):
        return len(job.pictures)
    if isinstance(edit, Components):
        codes = job.bundle.stage("ar_prior").codes
        return len(usable_components(edit, 0 if codes is None else codes.axes.shape[0]))
    return len(CONDITIONS) if isinstance(edit, CompareConditioning) else 1


def score(job: Job, edit: LatentEdit, images: np.ndarray) -> np.ndarray:
    """[N] float32, CLIP's cosine of each picture with what was asked for: the caption, or where
    there is none the pictures that it started from."""
    text = edit.caption if isinstance(edit, Vary | Mix) else None
    found = unit(job.bundle.encode_image(clip_squares(job.bundle, list(images))))
    if text:
        return found @ unit(job.bundle.encode_text([text]))[0]
    if not job.pictures:
        assert isinstance(edit, Mix)
        return (found @ unit(job.bundle.encode_text(edit.texts)).T).mean(axis=1)
    return (found @ unit(job.embeddings).T).mean(axis=1)


def _stages(job: Job, edit: LatentEdit) -> list[str]:
    sizes = upsampled_sizes(job.upsample)
    names = ["clip", "decoder", *(f"upsampler_{size}" for size in sizes)]
    return [*names, "ar_prior"] if isinstance(edit, Components) else names


def _decode(job: Job, edit: LatentEdit, frames: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    if isinstance(edit, CompareConditioning):
        decoded = _three_ways(job, edit, frames, candidates)
        return job.finish(decoded, candidates)
    latents = latents_of(job, edit, frames, candidates)
    negative = [latents.negative] * len(frames) if latents.negative else None
    decoded = job.bundle.decode(
        latents.embeddings,
        latents.texts,
        job.keys(candidates, 1),
        job.sampling,
        negative=negative,
        x_T=latents.x_T,
        as_float=job.upsample is not None,
    )
    return job.finish(decoded, candidates)


def _three_ways(
    job: Job, edit: CompareConditioning, frames: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """See `CONDITIONS`; one call for each that is asked for."""
    parts: dict[int, np.ndarray] = {}
    for frame in set(frames.tolist()):
        own = candidates[frames == frame]
        texts, embeddings = [edit.prompt] * len(own), None
        if frame == 1:
            embeddings = np.repeat(job.bundle.encode_text([edit.prompt]), len(own), axis=0)
        elif frame == 2:
            keys = job.keys(own, 0)
            embeddings = job.bundle.sample_prior(texts, keys, job.sampling, job.prior)
        as_float = job.upsample is not None
        keys = job.keys(own, 1)
        parts[frame] = job.bundle.decode(embeddings, texts, keys, job.sampling, as_float=as_float)
    first = next(iter(parts.values()))
    decoded = np.empty((len(frames), *first.shape[1:]), first.dtype)
    for frame, part in parts.items():
        decoded[frames == frame] = part
    return decoded


def _count(edit: LatentEdit, how: SamplingConfig, num_images: int | None) -> int:
    from_noise = isinstance(edit, Mix | CompareConditioning | Components) or (
        isinstance(edit, Vary | Interpolate) and edit.noise == "drawn"
    )
    draws = from_noise or how.decoder.eta > 0
    if num_images is None:
        return 4 if draws and not isinstance(edit, Interpolate | Components) else 1
    if num_images < 1:
        raise UserError(f"num_images is {num_images}: give 1 or more")
    if num_images > 1 and not draws:
        raise UserError(
            f"num_images is {num_images}, and this {edit.verb} draws no noise, so that all would "
            "be the same: give 1, or an eta above 0"
        )
    return num_images
