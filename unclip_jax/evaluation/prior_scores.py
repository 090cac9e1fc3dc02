"""The prior: how near is what it draws from a caption to the true picture's embedding?

Among the numbers are the five cosines that DALLE2-pytorch tracks: its baseline is `cosine_text`,
its similarity with the original image `cosine`, with the text `cosine_to_text`, with an unrelated
caption `cosine_other_text`, its difference from the baseline `cosine_gain`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unclip_jax.evaluation.encoders import Say
from unclip_jax.evaluation.intervals import mean_interval, share_interval
from unclip_jax.evaluation.pictures import Pictures
from unclip_jax.evaluation.scores import chance_at_1, other_cosines, ranks, same
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
    cosine_to_text: float
    """Prior output and the text embedding it was drawn from."""
    cosine_other_text: float
    """Prior output and the text embedding of another caption: near `cosine_to_text`, the prior does
    not listen."""
    cosine_gain: float
    """`cosine_to_text` - `cosine_text`: above 0, the prior stays nearer to the text than true
    pictures are."""
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
    intervals: dict[str, tuple[float, float]]
    """95 % of the scores above by name, over the pictures."""


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
    recalls = {"r1": first, "r1_one_draw": one, "r1_text": text}
    hits = {name: ranks(query @ image.T, relevant) < 1 for name, query in recalls.items()}
    rows = {
        "cosine": _cosines(first, image),
        "cosine_one_draw": _cosines(one, image),
        "cosine_text": _cosines(text, image),
        "cosine_to_text": _cosines(first, text),
        "cosine_gain": _cosines(first, text) - _cosines(text, image),
        "cosine_seeds": _cosines(first, second),
        "cosine_other": other_cosines(first, image),
        "cosine_other_text": other_cosines(first, text),
        "cosine_pictures": other_cosines(image, image),
    }
    found = {name: mean_interval(values) for name, values in rows.items()}
    found.update({name: share_interval(values) for name, values in hits.items()})
    return PriorScores(
        split=split,
        pictures=len(captions),
        steps=how.prior.num_steps,
        guidance=how.prior.guidance_scale,
        num_candidates=how.num_candidates,
        chance_r1=chance_at_1(relevant),
        intervals={name: (one.low, one.high) for name, one in found.items()},
        **{name: one.value for name, one in found.items()},
    )


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N] of row i of one and row i of the other, both [N, E] of unit norm."""
    return np.sum(a * b, axis=-1)


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
