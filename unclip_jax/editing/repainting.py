"""Inpainting and outpainting: what a photo lacks, drawn window by window at its own resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unclip_jax.data.images import MAX_PIXELS
from unclip_jax.diffusion.inpainting import Resampling
from unclip_jax.editing.canvas import (
    Window,
    bounding_box,
    extend,
    plan_windows,
    resize_known,
    resize_square,
    room_for,
)
from unclip_jax.editing.facts import edit_facts
from unclip_jax.editing.job import Job, clip_squares, ranked, unit
from unclip_jax.editing.joining import join
from unclip_jax.editing.masks import check_mask
from unclip_jax.editing.pixel_settings import Inpaint, Outpaint
from unclip_jax.errors import UserError
from unclip_jax.generation.bundle import UPSAMPLED, Bundle
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.text_to_image import upsampled_sizes
from unclip_jax.samples import Samples

KEYS = 4
"""Numbers of keys that a window takes: of the prior (the first alone), decoder, two upsamplers."""
ENLARGED = 1.25
"""A drawn square is enlarged up to so much rather than upsampled once more, 16 times the work."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """A photo with what it lacks, and the windows that draw it."""

    picture: np.ndarray
    """[H, W, 3] uint8; read where it is known."""
    known: np.ndarray
    """[H, W] bool."""
    windows: list[Window]
    """All of one side, in order; none where nothing is lacking."""
    result: tuple[slice, slice]
    """Rows and columns of what was asked for: a thin picture has room around it for a window."""
    sizes: list[int]
    """Upsamplers that bring a window to its side."""


@dataclass(frozen=True, eq=False)
class Wish:
    """What is drawn on a canvas, for N candidates."""

    texts: list[str]
    embeddings: np.ndarray | None
    """[N, E] float32; None for a decoder, or by a wish, without."""
    negative: list[str] | None
    negative_embeddings: np.ndarray | None


def draw_repainted(
    job: Job, edit: Inpaint | Outpaint, num_images: int | None, indices: Sequence[int] | None
) -> Samples:
    """See `draw_edit`; what is known of the photo is in the pictures byte by byte."""
    canvas = canvas_of(job, edit)
    count = (4 if canvas.windows else 1) if num_images is None else num_images
    if count < 1:
        raise UserError(f"num_images is {count}: give 1 or more")
    numbers = np.arange(count) if indices is None else np.asarray(indices)
    images = np.repeat(canvas.picture[canvas.result][None], len(numbers), axis=0)
    if canvas.windows:
        wish = wish_of(job, edit, canvas, numbers)
        images = _paint(job, edit, canvas, wish, numbers)
    # The last upsampler that was used; a call that names it draws the same.
    job = replace(job, upsample=canvas.sizes[-1] if canvas.sizes else None)
    upsamplers = (job.bundle.upsampler_stage(size, is_known=True) for size in canvas.sizes)
    names = ["clip", job.bundle.inpainter, *upsamplers]
    facts = edit_facts(job, edit, job.pictures, names, numbers)
    return ranked(images, facts, lambda: _score(job, edit, canvas, images))


def repaint_sampling(default: SamplingConfig) -> SamplingConfig:
    """As the model's own, but by ddpm: at any number of calls RePaint comes nearer to the true
    conditional with its noise than with ddim (tests/diffusion/test_inpainting.py)."""
    if default.decoder.method == "ddpm":
        return default
    decoder = replace(default.decoder, method="ddpm", eta=0.0, spacing="respaced")
    return replace(default, decoder=decoder)


def canvas_of(job: Job, edit: Inpaint | Outpaint) -> Canvas:
    """What is lacking and how it is drawn.

    Raises:
        UserError: a mask of another size, a result that no file could hold, or a sampler that
            cannot go back.
    """
    photo, method = job.pictures[0], job.sampling.decoder.method
    if job.bundle.inpainter == "decoder" and method not in ("ddpm", "ddim"):
        raise UserError(f"the sampler is {method}, which cannot go back: give ddpm or ddim")
    if isinstance(edit, Inpaint):
        check_mask(photo, job.pictures[1])
        known = ~job.pictures[1]
    else:
        margins = edit.margins(*photo.shape[:2])
        height, width = photo.shape[0] + sum(margins[:2]), photo.shape[1] + sum(margins[2:])
        if height * width > MAX_PIXELS:
            raise UserError(
                f"the picture would have {width} x {height} pixels, the limit is {MAX_PIXELS} in "
                "all: extend it by less"
            )
        known = extend(np.ones(photo.shape[:2], bool), margins)
        photo = extend(photo, margins)
    wanted, (height, width) = ~known, known.shape
    if not wanted.any():
        return Canvas(photo, known, [], (slice(0, height), slice(0, width)), [])
    side = edit.window or _window_side(job, edit, wanted)
    room = room_for(known.shape, side)
    result = (slice(room[0], room[0] + height), slice(room[2], room[2] + width))
    photo, known, wanted = (extend(one, room) for one in (photo, known, wanted))
    windows = plan_windows(known, wanted, side)
    return Canvas(photo, known, windows, result, upsamplers_for(job.bundle, side, job.upsample))


def upsamplers_for(bundle: Bundle, side: int, upsample: int | None) -> list[int]:
    """The upsamplers that bring a decoded picture to `side` pixels or as near as they can.

    Args:
        upsample: the last that may be used; None is the last that the model has.
    """
    sizes: list[int] = []
    drawn = bundle.side
    for size in upsampled_sizes(UPSAMPLED[-1] if upsample is None else upsample):
        is_missing = upsample is None and f"upsampler_{size}" not in bundle.stages
        if ENLARGED * drawn >= side or is_missing:
            break
        sizes.append(size)
        drawn *= 4
    return sizes


def wish_of(job: Job, edit: Inpaint | Outpaint, canvas: Canvas, candidates: np.ndarray) -> Wish:
    """What the decoder draws from: the prior's embeddings for a prompt, or CLIP's of the photo."""
    texts, bundle = [edit.prompt] * len(candidates), job.bundle
    negative = [edit.negative] * len(candidates) if edit.negative else None
    recipe: Any = bundle.stage("decoder").recipe
    if recipe.model.embedding_width is None or (edit.prompt and job.prior == "none"):
        return Wish(texts, None, negative, None)
    if not edit.prompt:
        own = bundle.encode_image(clip_squares(bundle, [_shown(canvas)]))
        return Wish(texts, np.repeat(own, len(candidates), axis=0), negative, None)
    keys = job.keys(candidates, 0)
    own = bundle.sample_prior(texts, keys, job.sampling, job.prior, negative=negative)
    away = None
    if negative:
        away = bundle.sample_prior(negative, keys, job.sampling, job.prior)
    return Wish(texts, own, negative, away)


def _shown(canvas: Canvas) -> np.ndarray:
    """What stands for the prompt where there is none: what the first window knows, around a hole of
    its mean colour. (Outpainting by CLIP's embedding of the photo alone, which says nothing of
    where the photo lies, is farther from the truth: 11.7 dB instead of 14.9 in benchmarks/seams.)
    """
    place = canvas.windows[0].place
    picture, known = canvas.picture[place], canvas.known[place]
    if not known.any():
        raise UserError("the mask leaves nothing of the photo to go by: say what to paint")
    return np.where(known[..., None], picture, picture[known].mean(axis=0)).astype(np.uint8)


def _window_side(job: Job, edit: Inpaint | Outpaint, wanted: np.ndarray) -> int:
    """See `Inpaint` and `Outpaint`."""
    least = job.bundle.side
    largest = least * 4 ** len(upsamplers_for(job.bundle, 2**31, job.upsample))
    side = max(least, min(wanted.shape))
    if isinstance(edit, Inpaint):
        box = max(bounding_box(wanted)[2:])
        side = min(side, max(least, math.ceil(edit.context * box)))
    return min(side, largest)


def _paint(
    job: Job, edit: Inpaint | Outpaint, canvas: Canvas, wish: Wish, candidates: np.ndarray
) -> np.ndarray:
    """[N, H, W, 3] uint8, the result of every candidate."""
    images = np.repeat(canvas.picture[None], len(candidates), axis=0)
    known = canvas.known.copy()
    for number, window in enumerate(canvas.windows):
        rows, columns = window.place
        crops, here = images[:, rows, columns], known[rows, columns]
        drawn = _draw_window(job, edit, canvas.sizes, crops, here, wish, candidates, number)
        images[:, rows, columns] = np.where(here[..., None], crops, drawn)
        known[rows, columns] = True
    return images[:, *canvas.result]


def _draw_window(
    job: Job,
    edit: Inpaint | Outpaint,
    sizes: list[int],
    crops: np.ndarray,
    known: np.ndarray,
    wish: Wish,
    candidates: np.ndarray,
    number: int,
) -> np.ndarray:
    """[N, w, w, 3] uint8, windows around what is known of them; the rest of `crops` is not read."""
    first, side = KEYS * number, job.bundle.side
    picture, keep = _at_side(crops, known, side)
    drawn = job.bundle.decode_known(
        picture,
        keep,
        wish.embeddings,
        wish.texts,
        job.keys(candidates, first + 1),
        job.sampling,
        Resampling(edit.jump_length, edit.resamples),
        negative=wish.negative,
        negative_embeddings=wish.negative_embeddings,
        as_float=bool(sizes),
    )
    drawn = _joined(drawn, keep, edit)
    for stage, size in enumerate(sizes, 2):
        side *= 4
        picture, keep = _at_side(crops, known, side)
        drawn = job.bundle.upsample(
            drawn,
            job.keys(candidates, first + stage),
            size,
            job.sampling,
            known=picture,
            keep=keep,
            as_float=size != sizes[-1],
        )
        drawn = _joined(drawn, keep, edit)
    if side == len(known):
        return drawn
    drawn = np.stack([resize_square(one, len(known)) for one in drawn])
    return _joined(np.where(known[..., None], crops, drawn), known[None, ..., None], edit)


def _joined(drawn: np.ndarray, keep: np.ndarray, edit: Inpaint | Outpaint) -> np.ndarray:
    """See `join`; keep [N, H, W, 1] bool, the same of all."""
    return join(drawn, keep[0, ..., 0], reach=edit.blend) if edit.blend else drawn


def _at_side(crops: np.ndarray, known: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """[N, side, side, 3] uint8 and [N, side, side, 1] bool, see `resize_known`."""
    pictures, keeps = zip(*(resize_known(one, known, side) for one in crops), strict=True)
    return np.stack(pictures), np.stack(keeps)[..., None]


def _score(job: Job, edit: Inpaint | Outpaint, canvas: Canvas, images: np.ndarray) -> np.ndarray:
    """[N] float32, CLIP's cosine of what was drawn, with a margin of half its size, with the prompt
    or what stood for it."""
    bundle = job.bundle
    if not canvas.windows:
        return np.zeros(len(images), np.float32)
    if edit.prompt:
        target = bundle.encode_text([edit.prompt])
    else:
        target = bundle.encode_image(clip_squares(bundle, [_shown(canvas)]))
    top, left, height, width = bounding_box(~canvas.known[canvas.result])
    rows = slice(max(0, top - height // 2), top + height + height // 2)
    columns = slice(max(0, left - width // 2), left + width + width // 2)
    crops = list(images[:, rows, columns])
    return unit(bundle.encode_image(clip_squares(bundle, crops))) @ unit(target)[0]
