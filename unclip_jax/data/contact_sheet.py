"""Pictures side by side in rows, with what they are written beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unclip_jax.printable import printable

PAD = 2
"""Pixels between pictures and around."""
LEAST_SIDE = 128
"""Pixels of a picture on a sheet with words; smaller ones are shown larger, pixel by pixel."""
_FONT_SIZE = 14
_LINE = 18
_MARGIN = 168
"""Pixels for the words of a row."""


def make_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> np.ndarray:
    """Pictures on white, `PAD` pixels between them and around, and words if there are any.

    Args:
        rows: [H, W, 3] uint8 each, all of the first one's size; rows may differ in length.
        row_labels: one a row, written to its left; none leaves no room for them.
        column_labels: one a column, written above it.
    Returns:
        [·, ·, 3] uint8.
    """
    height, width = rows[0][0].shape[:2]
    has_words = bool(row_labels or column_labels)
    factor = max(1, -(-LEAST_SIDE // min(height, width))) if has_words else 1
    height, width = factor * height, factor * width
    left = _MARGIN if row_labels else 0
    top = _LINE + PAD if column_labels else 0
    columns = max(map(len, rows))
    shape = (top + len(rows) * (height + PAD) + PAD, left + columns * (width + PAD) + PAD, 3)
    sheet = np.full(shape, 255, np.uint8)
    for number, row in enumerate(rows):
        y = top + PAD + number * (height + PAD)
        for column, image in enumerate(row):
            x = left + PAD + column * (width + PAD)
            large = image.repeat(factor, axis=0).repeat(factor, axis=1)
            sheet[y : y + height, x : x + width] = large
    if not has_words:
        return sheet
    drawn = Image.fromarray(sheet)
    _write(drawn, row_labels, column_labels, (left, top), (height, width))
    return np.asarray(drawn)


def _write(
    sheet: Image.Image,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    corner: tuple[int, int],
    side: tuple[int, int],
) -> None:
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    (left, top), (height, width) = corner, side
    for number, label in enumerate(column_labels):
        x = left + PAD + number * (width + PAD) + width // 2
        text = _wrap(pen, font, label, width, 1)
        pen.text((x, PAD), text, fill=0, font=font, anchor="ma")
    for number, label in enumerate(row_labels):
        text = _wrap(pen, font, label, _MARGIN - 3 * PAD, height // _LINE)
        y = top + PAD + number * (height + PAD) + height // 2
        pen.multiline_text((2 * PAD, y), text, fill=0, font=font, anchor="lm")


def _wrap(pen: ImageDraw.ImageDraw, font: object, label: str, width: int, most: int) -> str:
    """At most `most` lines of `width` pixels, and … where words are left out."""

    def fits(text: str) -> bool:
        return pen.textlength(text, font=font) <= width  # pyright: ignore[reportArgumentType]

    lines: list[str] = []
    words = printable(label.replace("\n", " "), 300).split()
    while words:
        line = words.pop(0)
        while words and fits(f"{line} {words[0]}"):
            line += f" {words.pop(0)}"
        while not fits(line):  # one long word
            line = f"{line.removesuffix('…')[:-1]}…"
        lines.append(line)
        if len(lines) == most and words:
            while not fits(f"{line}…"):
                line = line[:-1]
            lines[-1] = f"{line}…"
            break
    return "\n".join(lines)
