"""Squares over a picture of any size: which one is drawn next, and what of it is known.

A model draws squares of a few sides; a photo is any rectangle. So an edit is drawn window by
window: each is cut out, drawn at the model's side around what is known of it, brought back to its
own side and put where nothing was known. What a window has drawn is known to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

CANDIDATES = 8
"""Windows that could be next start at multiples of this part of their side."""


@dataclass(frozen=True)
class Window:
    """A square of pixels."""

    top: int
    left: int
    side: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)


def extend(array: np.ndarray, margins: tuple[int, int, int, int]) -> np.ndarray:
    """[H, W, ...] with zeros around it: (top, bottom, left, right) rows and columns."""
    top, bottom, left, right = margins
    return np.pad(array, ((top, bottom), (left, right)) + ((0, 0),) * (array.ndim - 2))


def room_for(shape: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """Margins, as for `extend`, that give a picture of this shape room for a window."""
    rows, columns = (max(0, side - own) for own in shape)
    return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(top, left, height, width) of what is True in [H, W] bool, of which something is."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (
        int(rows[0]),
        int(columns[0]),
        int(rows[-1] - rows[0] + 1),
        int(columns[-1] - columns[0] + 1),
    )


def plan_windows(known: np.ndarray, wanted: np.ndarray, side: int) -> list[Window]:
    """Windows that together draw everything that is wanted, in order.

    If one window can hold it all and a third of it is known, that one, around its middle. Else the
    one that draws most among those of which half is known, and so on, from the known outwards.
    Where no window knows half, one that holds it all, or the one that knows most.

    Args:
        known: [H, W] bool, pixels that are there from the start; H and W at least `side`.
        wanted: [H, W] bool, pixels to draw, none of them known. What is neither is drawn where a
            window covers it, for nobody.
    """
    known, wanted = known.copy(), wanted.copy()
    windows: list[Window] = []
    while wanted.any():
        window = _next_window(known, wanted, side)
        windows.append(window)
        known[window.place], wanted[window.place] = True, False
    return windows


def _next_window(known: np.ndarray, wanted: np.ndarray, side: int) -> Window:
    top, left, height, width = bounding_box(wanted)
    rows, columns = known.shape
    middle = Window(
        _inside(top + (height - side) // 2, rows, side),
        _inside(left + (width - side) // 2, columns, side),
        side,
    )
    holds_all = max(height, width) <= side
    if holds_all and 3 * int(known[middle.place].sum()) >= side * side:
        return middle
    tops, lefts = _starts(rows, side, top, height), _starts(columns, side, left, width)
    drawn, seen = (_counts(mask, tops, lefts, side) for mask in (wanted, known))
    is_rich = (drawn > 0) & (2 * seen >= side * side)
    if is_rich.any():
        rank = np.where(is_rich, drawn, -1)
    elif holds_all:
        return middle
    else:
        rank = np.where(drawn > 0, seen * (side * side + 1) + drawn, -1)
    i, j = np.unravel_index(int(rank.argmax()), rank.shape)
    return Window(int(tops[i]), int(lefts[j]), side)


def _starts(length: int, side: int, start: int, extent: int) -> np.ndarray:
    """First pixels of the windows that come into question along one side, increasing."""
    grid = range(0, length - side + 1, max(1, side // CANDIDATES))
    box = (start, start + extent - side)
    return np.unique([*grid, length - side, *(_inside(one, length, side) for one in box)])


def _inside(start: int, length: int, side: int) -> int:
    return min(max(start, 0), length - side)


def _counts(mask: np.ndarray, tops: np.ndarray, lefts: np.ndarray, side: int) -> np.ndarray:
    """[tops, lefts] int64, how many pixels of each window are True."""
    rows = np.concatenate([np.zeros((1, mask.shape[1]), np.int32), mask.cumsum(0, np.int32)])
    strips = rows[tops + side] - rows[tops]
    sums = np.pad(strips.cumsum(1, np.int64), ((0, 0), (1, 0)))
    return sums[:, lefts + side] - sums[:, lefts]


def resize_known(
    picture: np.ndarray, known: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """What is known of a square picture, at another side.

    A pixel of the result is the mean of the known pixels that it covers (enlarged: linear between
    them), so that nothing of what is not known gets in. It is known if half of what it covers is.

    Args:
        picture: [w, w, 3] uint8.
        known: [w, w] bool.
    Returns:
        [side, side, 3] uint8, 0 where nothing is known at all, and [side, side] bool.
    """
    if len(picture) == side:
        return picture, known
    method = Image.Resampling.BOX if side < len(picture) else Image.Resampling.BILINEAR

    def resize(plane: np.ndarray) -> np.ndarray:
        image = Image.fromarray(plane.astype(np.float32))
        return np.asarray(image.resize((side, side), method))

    weight = resize(known)
    planes = [resize(picture[..., channel] * known) for channel in range(picture.shape[-1])]
    mean = np.stack(planes, axis=-1) / np.maximum(weight, 1e-6)[..., None]
    return np.clip(np.round(mean), 0, 255).astype(np.uint8), weight >= 0.5 - 1e-6


def resize_square(picture: np.ndarray, side: int) -> np.ndarray:
    """[w, w, 3] uint8 at another side, antialiased bicubic."""
    if len(picture) == side:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))
