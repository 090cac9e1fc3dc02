"""sample.py classify PHOTO ... --labels "a cat,a dog": which of some labels pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unclip_jax.cli.clip_tools import (
    ClipOptions,
    check_photos,
    check_text,
    load_clip_alone,
    parse_verb,
    print_matches,
    read_photos,
    read_texts,
)
from unclip_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions(ClipOptions):
    """Sorts pictures among labels that CLIP was never trained to tell apart: for each picture the
    likeliest labels, with probability and cosine."""

    photos: tuple[str, ...]
    """The pictures; their central squares are read."""
    labels: str | None = None
    """What they may show: a file with one a line, or "a cat,a dog"."""
    templates: str | None = None
    """File of sentences with {} for the label, one a line, whose embeddings are averaged; None is
    {}, 'a {}', 'a photo of a {}' and 'an emoji of {}'."""
    top: int = 5
    """Labels a picture."""


def main(arguments: Sequence[str]) -> int:
    """Prints the labels; returns the exit code."""
    options = parse_verb(ClassifyOptions, "classify", arguments)
    check_photos(options.photos, "classify")
    labels = _labels(options.labels)
    templates = read_texts(options.templates, "--templates") if options.templates else None
    unclip = load_clip_alone(options)
    from unclip_jax.clip_tools.zero_shot import TEMPLATES, check_labels, check_templates

    check_labels(labels)
    check_templates(templates or TEMPLATES)
    found = unclip.classify(read_photos(options.photos), labels, templates or TEMPLATES)
    print_matches(options.photos, found.best(options.top), as_json=options.json)
    return 0


def _labels(given: str | None) -> list[str]:
    if given is None:
        raise UserError('--labels is missing: give "a cat,a dog", or a file with one a line')
    if Path(given).is_file() or Path(given).suffix == ".txt":
        return read_texts(given, "--labels")
    parts = given.split(",")
    return [check_text(part, f"--labels, label {place}") for place, part in enumerate(parts, 1)]
