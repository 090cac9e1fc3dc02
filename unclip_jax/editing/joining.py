"""What was drawn brought to the tone of the photo that it continues.

A decoder follows its embedding, and the prior's has another shade than the photo at hand: at the
border the picture then steps from one to the other. So a correction is added to what was drawn that
takes the step away and fades out from there: a screened Poisson problem (Bhat et al. 2008, section
3), where Perez et al. 2003 keep the correction all over. The photo is not touched.

The step across the border that is left is what goes on from both sides: the mean of the step
before it and the one after it.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

REACH = 8.0
"""As far as a shade of the decoder's 64 pixels reaches."""
FIRMNESS = 2.0
"""Weight of a step at the border against one between neighbours of the correction: what differs
from pixel to pixel, which is texture, stays. A large one leaves a line that is smoother than all
others (benchmarks/seams.py: 0.66 times as rough at 16, 0.8 at 2, of true pictures 0.94)."""
BAND = 5.0
"""The correction is 0 farther than this times `REACH`."""
_SIDES = ((0, 1), (0, -1), (1, 0), (-1, 0))


def join(images: np.ndarray, known: np.ndarray, *, reach: float = REACH) -> np.ndarray:
    """Pictures whose drawn part begins in the tone of the known part.

    Args:
        images: [N, H, W, 3] uint8, or float32 in [-1, 1].
        known: [H, W] bool, what is not drawn.
        reach: pixels in which the correction fades to 1/e along a straight border.
    Returns:
        the same where it is known, corrected within `BAND` times `reach` pixels of it, clipped.
    """
    band = ~known & _near(known, int(BAND * reach))
    pairs = _border(known, band)
    if not len(pairs[0]):
        return images
    tones = images.astype(np.float64)
    count = int(band.sum())
    number = np.full(known.shape, -1)
    number[band] = np.arange(count)
    rows, columns, values = [np.arange(count)], [np.arange(count)], [np.full(count, reach**-2)]
    for axis in (0, 1):  # neighbours that are both in the band
        one, other = (
            np.take(number, range(start, known.shape[axis] - 1 + start), axis) for start in (0, 1)
        )
        is_edge = (one >= 0) & (other >= 0)
        i, j = one[is_edge], other[is_edge]
        rows += [i, j, i, j]
        columns += [i, j, j, i]
        values += [np.ones(2 * len(i)), -np.ones(2 * len(i))]
    border = number[pairs[0], pairs[1]]
    rows, columns = [*rows, border], [*columns, border]
    values.append(np.full(len(border), FIRMNESS))
    matrix = csc_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (count, count)
    )
    wanted = np.zeros((count, len(images) * images.shape[-1]))
    np.add.at(wanted, border, -FIRMNESS * _mismatch(tones, known, pairs))
    found = splu(matrix).solve(wanted).reshape(count, len(images), -1)
    tones[:, band] += found.swapaxes(0, 1)
    if images.dtype == np.uint8:
        tones = np.round(np.clip(tones, 0, 255))
    else:
        tones = np.clip(tones, -1, 1)
    return np.where(known[..., None], images, tones.astype(images.dtype))


def _near(known: np.ndarray, reach: int) -> np.ndarray:
    """[H, W] bool, at most `reach` rows and columns from something known."""
    found = known
    for axis in (0, 1):
        length = found.shape[axis]
        sums = np.cumsum(found, axis)
        sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
        places = np.arange(length)
        last = np.minimum(places + reach + 1, length)
        found = sums.take(last, axis) > sums.take(np.maximum(places - reach, 0), axis)
    return found


def _border(known: np.ndarray, band: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of each pixel of the band beside a known one: row, column, and the way from the known one."""
    found = []
    for down, right in _SIDES:
        before = np.zeros_like(known)
        before[_slices(known.shape, down, right)] = known[_slices(known.shape, -down, -right)]
        places = np.argwhere(band & before)
        found.append(np.column_stack([places, np.broadcast_to([down, right], places.shape)]))
    return tuple(np.concatenate(found).T)


def _slices(shape: tuple[int, ...], down: int, right: int) -> tuple[slice, slice]:
    """What can be reached by a step, of an array of this shape."""
    return tuple(
        slice(max(step, 0), length + min(step, 0))
        for step, length in zip((down, right), shape, strict=True)
    )  # pyright: ignore[reportReturnType]


def _mismatch(tones: np.ndarray, known: np.ndarray, pairs: tuple[np.ndarray, ...]) -> np.ndarray:
    """[P, N * C], the step across each border pixel less the mean of those before and after it."""
    row, column, down, right = pairs
    step = _step(tones, row - down, column - right, down, right)
    goes_on = np.zeros_like(step)
    weight = np.zeros(len(row))
    height, width = known.shape
    for away, is_known in ((-2, True), (0, False)):  # into the photo, into what was drawn
        i, j = row + away * down, column + away * right
        to_i, to_j = i + down, j + right
        is_there = (np.minimum(i, to_i) >= 0) & (np.minimum(j, to_j) >= 0)
        is_there &= (np.maximum(i, to_i) < height) & (np.maximum(j, to_j) < width)
        i, j, to_i, to_j = (np.where(is_there, one, 0) for one in (i, j, to_i, to_j))
        is_there &= (known[i, j] == is_known) & (known[to_i, to_j] == is_known)
        goes_on[is_there] += _step(tones, i, j, to_i - i, to_j - j)[is_there]
        weight += is_there
    return step - goes_on / np.maximum(weight, 1)[:, None]


def _step(
    tones: np.ndarray, row: np.ndarray, column: np.ndarray, down: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """[P, N * C], from pixels to those that a step leads to."""
    found = tones[:, row + down, column + right] - tones[:, row, column]
    return found.swapaxes(0, 1).reshape(len(row), -1)
