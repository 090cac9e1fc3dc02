"""The prior: how near is what it draws from a caption to the true picture's embedding?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unclip_jax.evaluation.encoders import Say
from unclip_jax.evaluation.pictures import Pictures
from unclip_jax.evaluation.scores import (
    chance_at_1,
    paired_cosine,
    recall_at,
    same,
    unpaired_cosine,
)
from unclip_jax.generation.keys import image_keys
from unclip_jax.pipeline import UnCLIP


@dataclass(frozen=True)
class PriorScores:
    """Cosines of image embeddings, and R@1 of the true picture among all of the split."""

    split: str
    pictures: int
    steps: int | str | tuple[int, ...]
    guidance: float
    num_candidates: int
    """Draws of which the one nearest to the text embedding is kept."""
    cosine: float
    """Prior output and true image embedding."""
    cosine_one_draw: float
    """The same with a single draw."""
    cosine_text: float
    """Text embedding and true image embedding: what one has without a prior."""
    cosine_other: float
    """Prior output and the image embedding of another picture."""
    cosine_pictures: float
    """Image embeddings of two different pictures."""
    cosine_seeds: float
    """Two prior outputs for the same caption with different seeds."""
    r1: float
    """The true picture is the nearest to the prior's output."""
    r1_one_draw: float
    r1_text: float
    """The true picture is the nearest to the text embedding."""
    chance_r1: float


def measure_prior(
    unclip: UnCLIP, split: str, pictures: Pictures, seed: int, say: Say
) -> PriorScores:
    """The model's own sampling settings, one output a picture, from 'LABEL, STYLE style'."""
    captions, how = pictures.captions, unclip.sampling
    image = unclip.encode_image(pictures.images)
    text = unclip.encode_text(captions)
    first = _draw(unclip, captions, seed, 0, how.num_candidates, say)
    second = _draw(unclip, captions, seed, 1, how.num_candidates, say)
    one = _draw(unclip, captions, seed, 2, 1, say)
    relevant = same(captions, captions)
    return PriorScores(
        split=split,
        pictures=len(captions),
        steps=how.prior.num_steps,
        guidance=how.prior.guidance_scale,
        num_candidates=how.num_candidates,
        cosine=paired_cosine(first, image),
        cosine_one_draw=paired_cosine(one, image),
        cosine_text=paired_cosine(text, image),
        cosine_other=unpaired_cosine(first, image),
        cosine_pictures=unpaired_cosine(image, image),
        cosine_seeds=paired_cosine(first, second),
        r1=recall_at(first @ image.T, relevant, 1),
        r1_one_draw=recall_at(one @ image.T, relevant, 1),
        r1_text=recall_at(text @ image.T, relevant, 1),
        chance_r1=chance_at_1(relevant),
    )


def _draw(
    unclip: UnCLIP, captions: tuple[str, ...], seed: int, draw: int, candidates: int, say: Say
) -> np.ndarray:
    """[N, E] prior outputs; every (draw, caption) has a key of its own."""
    count, step = len(captions), 8 * unclip.sampling.batch_size
    keys = image_keys(seed, [*range(draw * count, (draw + 1) * count)])
    how = replace(unclip.sampling, num_candidates=candidates)
    parts = []
    for start in range(0, count, step):
        say(f"prior, draw {draw + 1} of 3 (best of {candidates}): {start} of {count} captions")
        rows = slice(start, start + step)
        parts.append(unclip.sample_prior(captions[rows], keys[rows], how))
    return np.concatenate(parts)
