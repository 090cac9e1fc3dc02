"""sample.py caption PHOTO ... --captions FILE: the captions of a file that fit pictures best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unclip_jax.cli.clip_tools import (
    ClipOptions,
    check_photos,
    load_clip_alone,
    parse_verb,
    print_matches,
    read_photos,
    read_texts,
)
from unclip_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CaptionOptions(ClipOptions):
    """Finds the captions of a file that describe pictures best: for each picture the first ones,
    with probability among all captions and cosine."""

    photos: tuple[str, ...]
    """The pictures; their central squares are read."""
    captions: str | None = None
    """File of captions, one a line, # for comments."""
    top: int = 5
    """Captions a picture."""


def main(arguments: Sequence[str]) -> int:
    """Prints the captions; returns the exit code."""
    options = parse_verb(CaptionOptions, "caption", arguments)
    check_photos(options.photos, "caption")
    if options.captions is None:
        raise UserError("--captions is missing: name a file with one caption a line")
    captions = read_texts(options.captions, "--captions")
    unclip = load_clip_alone(options)
    from unclip_jax.clip_tools.captions import rank_captions

    found = rank_captions(unclip, read_photos(options.photos), captions)
    print_matches(options.photos, found.best(options.top), as_json=options.json)
    return 0
