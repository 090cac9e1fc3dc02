"""What every source of data gives: records of an encoded picture and its captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from unclip_jax.data.captions import EmojiFacts

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
"""Endings of file names that are taken for pictures."""
MAX_TEXT = 1_000_000
"""Bytes of a file of captions that belongs to one picture."""


@dataclass(frozen=True)
class Record:
    """One picture, still encoded, and what it is called."""

    name: str
    """Unique in its source: a path, a key."""
    image: bytes
    captions: tuple[str, ...] | EmojiFacts
    """The captions as given, at least one; or the facts that an emoji's captions are drawn from."""


class Source(Protocol):
    """A sequence of records: random access, safe to read from several threads.

    The order depends on nothing but the data. Reading a record that is damaged raises BadImage,
    OSError, RuntimeError or ValueError.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def clean_captions(lines: object) -> tuple[str, ...]:
    """The captions in a text (one a line), a list of texts, or anything else (none)."""
    if isinstance(lines, str):
        # Not splitlines, which also splits at U+2028 and at control characters.
        lines = lines.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not isinstance(lines, (list, tuple)):
        return ()
    return tuple(text.strip() for text in lines if isinstance(text, str) and text.strip())
