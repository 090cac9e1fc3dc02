"""Text from outside, made fit for a terminal: what it says is shown, what it does is not."""

from __future__ import annotations

import unicodedata

LIMIT = 200
"""Characters of a name or a prompt that a message shows."""
_ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of what is not seen but acts: control, format (the bidirectional overrides
among them), surrogates, and the separators of lines and paragraphs."""
_JOINERS = "\u200c\u200d"  # within words of Persian and Hindi, and within emoji


def printable(text: object, limit: int | None = LIMIT) -> str:
    """`str(text)` with control, bidirectional and surrogate characters as escapes such as \\x1b.

    Args:
        limit: characters of the result; the middle of a longer text is left out. None keeps all.
    Returns:
        one line that any terminal and any UTF-8 file can take.
    """
    shown = str(text)
    if limit is not None and len(shown) > limit:  # before the escapes: they may be long
        shown = _shorten(shown, limit)
    shown = "".join(map(_escape, shown))
    return shown if limit is None or len(shown) <= limit else _shorten(shown, limit)


def count_of(number: int, thing: str) -> str:
    """'1 picture', '2 pictures'."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _shorten(text: str, limit: int) -> str:
    tail = limit // 4
    return f"{text[: limit - tail - 1]}…{text[len(text) - tail :]}"


def _escape(char: str) -> str:
    if unicodedata.category(char) not in _ACTING or char in _JOINERS:
        return char
    code = ord(char)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
