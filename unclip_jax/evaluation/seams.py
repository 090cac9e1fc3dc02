"""Whether a border between what was there and what was drawn shows in a picture.

The step from each row or column of pixels to the next is averaged along the border; the border's
own step is compared with those beside it, on both sides. A picture without a seam has a border like
any other line: a ratio near 1, and steps next to it that are larger.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REACH = 16
"""Lines on each side of a border that it is compared with."""


@dataclass(frozen=True)
class Seam:
    """One side of the rectangle that was there."""

    side: str
    """left, right, top or bottom."""
    border: float
    """Mean absolute step across the border, in 0 ... 255."""
    lines: tuple[float, ...]
    """The same across each line parallel to it, `REACH` on each side where the picture has them."""

    @property
    def ratio(self) -> float:
        """The border's step over the mean of the lines'; 1 without a seam."""
        return self.border / max(float(np.mean(self.lines)), 1e-9)

    @property
    def rank(self) -> float:
        """Share of the lines whose step is smaller; 1 if the border's is the largest of all."""
        return float(np.mean(np.asarray(self.lines) < self.border))


def find_seams(picture: np.ndarray, box: tuple[int, int, int, int]) -> list[Seam]:
    """Of every side of `box` that lies inside the picture.

    Args:
        picture: [H, W, 3] uint8.
        box: (top, left, height, width) of what was there.
    """
    top, left, height, width = box
    rows, columns = slice(top, top + height), slice(left, left + width)
    upright = picture[:, columns].swapaxes(0, 1)
    borders = {
        "left": (picture[rows], left),
        "right": (picture[rows], left + width),
        "top": (upright, top),
        "bottom": (upright, top + height),
    }
    found = []
    for side, (strip, place) in borders.items():
        if 0 < place < strip.shape[1]:
            steps = np.abs(np.diff(strip.astype(np.float64), axis=1)).mean(axis=(0, 2))
            first, own = max(0, place - 1 - REACH), place - 1
            lines = np.delete(steps[first : own + REACH + 1], own - first)
            found.append(Seam(side, float(steps[own]), tuple(lines.tolist())))
    return found
