"""Pictures sorted among labels that are only named (Radford et al. 2021, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from unclip_jax.clip_tools.encoding import encode_pictures, encode_texts, logit_scale, to_unit
from unclip_jax.clip_tools.matches import Matches, match
from unclip_jax.errors import UserError
from unclip_jax.generation.bundle import Bundle

SLOT = "{}"
"""Where a template takes the label."""
TEMPLATES = ("{}", "a {}", "a photo of a {}", "an emoji of {}")
"""The ensemble that is taken where none is given."""


def classify(
    bundle: Bundle,
    pictures: Iterable[np.ndarray],
    labels: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Matches:
    """How likely each label is for each picture.

    Args:
        pictures: [H, W, 3] uint8 each, of any size.
        labels: two or more, all different.
        templates: sentences with {} for the label, see `embed_labels`.
    Raises:
        UserError: labels or templates that are not as above, or no picture.
    """
    embeddings = embed_labels(bundle, labels, templates)
    return match(encode_pictures(bundle, pictures), tuple(labels), embeddings, logit_scale(bundle))


def embed_labels(bundle: Bundle, labels: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """One embedding a label: its sentences' unit embeddings averaged, and of unit norm again
    (section 3.1.4).

    Returns:
        [len(labels), E] float32.
    """
    check_labels(labels)
    check_templates(templates)
    sentences = [template.replace(SLOT, label) for label in labels for template in templates]
    rows = encode_texts(bundle, sentences)
    return to_unit(rows.reshape(len(labels), len(templates), -1).mean(axis=1))


def check_labels(labels: Sequence[str]) -> None:
    """UserError unless there are two labels or more, all different and none empty."""
    if len(labels) < 2:
        raise UserError(f"labels: {len(labels)} given; give two or more to choose from")
    seen: set[str] = set()
    for place, label in enumerate(labels, 1):
        if not label.strip():
            raise UserError(f"label {place} is empty: name what a picture may show")
        if label in seen:
            raise UserError(f"label {label!r} is given twice: give each label once")
        seen.add(label)


def check_templates(templates: Sequence[str]) -> None:
    """UserError unless there is a template, and each has a place for the label."""
    if not templates:
        raise UserError(f"there is no template: give one such as 'a photo of a {SLOT}'")
    for template in templates:
        if SLOT not in template:
            raise UserError(
                f"template {template!r} has no {SLOT} for the label: write 'a photo of a {SLOT}'"
            )
