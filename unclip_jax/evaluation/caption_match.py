"""Does a picture show its caption? CLIP score and R-precision, from embeddings alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unclip_jax.evaluation.intervals import Estimate, mean_interval, share_interval
from unclip_jax.evaluation.pictures import draw_candidates
from unclip_jax.evaluation.scores import own_is_first

CANDIDATES = 100


def clip_score(images: np.ndarray, texts: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of 100 · max(cos, 0) of each picture and its caption (Hessel et al. 2021, eq. 1, with
    w = 100 instead of 2.5, as GLIDE and most others print it).

    Args:
        images, texts: [N, E] float, unit norm.
    """
    cosines = (images.astype(np.float64) * texts.astype(np.float64)).sum(axis=1)
    return mean_interval(100 * np.maximum(cosines, 0), seed)


def r_precision(
    images: np.ndarray,
    texts: np.ndarray,
    captions: Sequence[str],
    num_candidates: int = CANDIDATES,
    seed: int = 0,
) -> Estimate:
    """Share of the pictures whose own caption is the nearest among `num_candidates` (Park et al.
    2021): itself and others of the list, drawn by seed and caption. A tie is a miss.

    Args:
        images, texts: [N, E] float, unit norm.
        captions: N, the texts that were embedded.
    Raises:
        ValueError: all captions are one, so there is nothing to choose from.
    """
    row_of = {caption: row for row, caption in enumerate(captions)}
    if len(row_of) < 2:
        raise ValueError("R-precision needs two different captions or more")
    hits = []
    for image, caption in zip(images, captions, strict=True):
        drawn = draw_candidates(list(row_of), caption, num_candidates, seed)
        hits.append(own_is_first(texts[[row_of[text] for text in drawn]] @ image))
    return share_interval(np.array(hits))
