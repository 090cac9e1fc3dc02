"""How CLIP scores of (picture, caption) pairs are made for many lists of candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unclip_jax.evaluation.scores import own_is_first
from unclip_jax.pipeline import UnCLIP

Say = Callable[[str], None]
"""Told what is going on, a line at a time."""


def own_text_is_first(
    unclip: UnCLIP, embeddings: np.ndarray, candidates: Sequence[Sequence[str]]
) -> np.ndarray:
    """Whether CLIP finds a picture's own text nearest, among a list of texts for each row.

    Args:
        embeddings: [N, K, E] float32, unit norm: K pictures for each of N lists.
        candidates: N lists of equally many texts, the own one first.
    Returns:
        [N, K] bool.
    """
    texts = list(dict.fromkeys(text for row in candidates for text in row))
    encoded = dict(zip(texts, unclip.encode_text(texts), strict=True))
    hits = [
        own_is_first(pictures @ np.stack([encoded[text] for text in row]).T)
        for pictures, row in zip(embeddings, candidates, strict=True)
    ]
    return np.stack(hits)
