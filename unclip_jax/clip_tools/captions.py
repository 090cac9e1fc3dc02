"""The best caption for a picture, of those that there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from unclip_jax.clip_tools.encoding import encode_pictures, encode_texts, logit_scale
from unclip_jax.clip_tools.matches import Matches, match
from unclip_jax.errors import UserError
from unclip_jax.generation.bundle import Bundle


def rank_captions(
    bundle: Bundle, pictures: Iterable[np.ndarray], captions: Sequence[str]
) -> Matches:
    """How well each caption describes each picture.

    Args:
        pictures: [H, W, 3] uint8 each, of any size.
        captions: one or more; of equal ones the first is kept.
    Raises:
        UserError: no caption, or no picture.
    """
    texts = tuple(dict.fromkeys(captions))
    if not texts:
        raise UserError("there is no caption: give one or more to choose from")
    embeddings = encode_texts(bundle, texts)
    return match(encode_pictures(bundle, pictures), texts, embeddings, logit_scale(bundle))
