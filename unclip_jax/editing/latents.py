"""What the decoder draws the pictures of an edit from: CLIP embeddings, captions and noise.

Ramesh et al. 2022, section 3: a picture is the pair (z_i, x_T), its CLIP image embedding and the
noise from which DDIM decodes the picture. Edits change one or both and decode again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unclip_jax.editing.job import Job
from unclip_jax.editing.settings import (
    Components,
    Diff,
    Interpolate,
    LatentEdit,
    Mix,
    Reconstruct,
    Vary,
)
from unclip_jax.editing.slerp import slerp
from unclip_jax.errors import UserError
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.printable import count_of

ITERATIONS = 3
"""Of the inversion, a step: with them a decoded picture is the inverted one to a rounding."""

PAPERS_SHARES = tuple(count / 320 for count in (20, 30, 40, 80, 120, 160, 200, 320))
"""Of the components, in figure 7 (Ramesh et al. 2022)."""


@dataclass(frozen=True)
class Latents:
    """What N pictures are decoded from."""

    embeddings: np.ndarray
    """[N, E] float32."""
    texts: list[str]
    """N captions for the decoder."""
    x_T: np.ndarray | None = None
    """[N, S, S, 3] float32; None is by key."""
    negative: str = ""
    """What guidance leads away from."""


def latents_of(job: Job, edit: LatentEdit, frames: np.ndarray, candidates: np.ndarray) -> Latents:
    """The latents of N pictures of an edit.

    Args:
        frames: [N] int, which picture of a candidate each is.
        candidates: [N] int, which candidate, see `Job.keys`.
    """
    if isinstance(edit, Vary):
        first = np.zeros(len(frames), int)
        x_T = job.x_T[first] if edit.noise == "inverted" else None
        return Latents(job.embeddings[first], [edit.caption] * len(frames), x_T)
    if isinstance(edit, Reconstruct):
        return Latents(job.embeddings[frames], [""] * len(frames), job.x_T[frames])
    if isinstance(edit, Interpolate):
        return _between(job, edit, frames)
    if isinstance(edit, Diff):
        return _towards(job, edit, frames)
    if isinstance(edit, Mix):
        return _mixed(job, edit, candidates)
    assert isinstance(edit, Components)
    return _from_components(job, edit, frames)


def latent_sampling(edit: LatentEdit, default: SamplingConfig) -> SamplingConfig:
    """How an edit is sampled unless the call says otherwise.

    What starts from inverted noise takes DDIM without guidance, as the inversion does.
    """
    if not isinstance(edit, Vary | Reconstruct | Interpolate | Diff | Components):
        return default
    decoder = replace(
        default.decoder,
        method="ddim",
        spacing="respaced",
        guidance_scale=1.0,
        guidance_rescale=0.0,
        eta=edit.eta if isinstance(edit, Vary) else 0.0,
        iterations=ITERATIONS,
    )
    return replace(default, decoder=decoder)


def _between(job: Job, edit: Interpolate, frames: np.ndarray) -> Latents:
    place = frames * (len(job.pictures) - 1) / (edit.frames - 1)
    start = np.minimum(place.astype(int), len(job.pictures) - 2)
    theta = place - start
    embeddings = slerp(job.embeddings[start], job.embeddings[start + 1], theta)
    x_T = None
    if edit.noise == "inverted":
        x_T = slerp(job.x_T[start], job.x_T[start + 1], theta)
    return Latents(embeddings, [""] * len(frames), x_T)


def _towards(job: Job, edit: Diff, frames: np.ndarray) -> Latents:
    """z_theta = slerp(z_i, norm(z_t - z_t0), theta), from the inverted noise."""
    to, away = job.bundle.encode_text([edit.to, edit.from_caption])
    direction = to - away if edit.from_caption else to
    length = np.linalg.norm(direction)
    if length < 1e-6:
        raise UserError(f"--to and --from are the same to CLIP ({edit.to!r}): say what changes")
    own = np.broadcast_to(job.embeddings[0], (len(frames), len(to)))
    # Of the picture's length, where embeddings have one: only the direction is a description.
    direction *= np.linalg.norm(job.embeddings[0]) / length
    theta = edit.theta * frames / (edit.frames - 1)
    embeddings = slerp(own, np.broadcast_to(direction, own.shape), theta)
    return Latents(embeddings, [""] * len(frames), job.x_T[np.zeros(len(frames), int)])


def _mixed(job: Job, edit: Mix, candidates: np.ndarray) -> Latents:
    count = len(job.pictures) + len(edit.texts)
    weights = np.asarray(edit.weights or [1.0] * count, np.float32)
    if len(weights) != count:
        raise UserError(
            f"weights has {count_of(len(weights), 'number')} for "
            f"{count_of(len(job.pictures), 'picture')} and {count_of(len(edit.texts), 'text')}: "
            "give one for each"
        )
    parts = [np.broadcast_to(own, (len(candidates), len(own))) for own in _rows(job)]
    for text in edit.texts:
        keys, texts = job.keys(candidates, 0), [text] * len(candidates)
        parts.append(job.bundle.sample_prior(texts, keys, job.sampling, job.prior))
    total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    norms = [np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    length = np.linalg.norm(total, axis=1, keepdims=True)
    if length.min() < 1e-6:
        raise UserError(f"weights is {edit.weights}: together they leave nothing, change one")
    caption = edit.caption
    if caption is None:
        caption = edit.texts[0] if len(edit.texts) == 1 else ""
    mixed = total / length * np.mean(norms, axis=0)
    return Latents(mixed, [caption] * len(candidates), None, edit.negative)


def _rows(job: Job) -> list[np.ndarray]:
    return list(job.embeddings) if job.pictures else []


def _from_components(job: Job, edit: Components, frames: np.ndarray) -> Latents:
    """z reconstructed from its first k components, at its own length."""
    codes = job.bundle.stage("ar_prior").codes
    if codes is None:
        raise UserError("the model's ar_prior has no components: load the folder it was saved in")
    axes, mean, own = np.asarray(codes.axes), np.asarray(codes.mean), job.embeddings[0]
    values = axes @ (own - mean)
    rows = []
    for count in np.asarray(usable_components(edit, len(axes)))[frames]:
        part = mean + values[:count] @ axes[:count]
        rows.append(part / np.linalg.norm(part) * np.linalg.norm(own))
    return Latents(np.stack(rows).astype(np.float32), [""] * len(frames))


def usable_components(edit: Components, available: int) -> list[int]:
    """The counts of the edit that a model with so many components has.

    Raises:
        UserError: it has none of them.
    """
    if not edit.components:
        return sorted({max(1, round(share * available)) for share in PAPERS_SHARES})
    counts = [count for count in edit.components if count <= available]
    if not counts:
        raise UserError(
            f"components is {edit.components}, and the model has {available}: give smaller numbers"
        )
    return counts
