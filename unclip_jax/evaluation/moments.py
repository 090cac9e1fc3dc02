"""Mean and covariance of features that come in blocks, none of which is kept.

Blocks are merged with the update of Chan, Golub and LeVeque (1979), which loses no digits where the
sum of squares would, and can be undone: the moments without a group of rows follow from those of
all and of the group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Moments:
    """Of `count` rows."""

    count: int
    mean: np.ndarray
    """[D] float64."""
    scatter: np.ndarray
    """[D, D] float64: the sum over the rows of (x - mean)(x - mean)ᵀ."""

    @property
    def covariance(self) -> np.ndarray:
        """[D, D] float64, unbiased (divided by count - 1, as every published FID).

        Raises:
            ValueError: fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance of {self.count} rows: need two or more")
        return self.scatter / (self.count - 1)


def moments_of(rows: np.ndarray) -> Moments:
    """Of [N, D] rows, N at least 1, in two passes."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"rows {rows.shape}: need [N, D], N at least 1")
    mean = rows.mean(axis=0)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """Of the rows of both."""
    count = a.count + b.count
    step = b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(step, step) * (a.count * b.count / count)
    return Moments(count, a.mean + step * (b.count / count), scatter)


def without(whole: Moments, part: Moments) -> Moments:
    """Of the rows of `whole` that are not in `part`, one of its groups: the inverse of `merge`."""
    count = whole.count - part.count
    if count < 1:
        raise ValueError("nothing is left without the part")
    mean = whole.mean + (whole.mean - part.mean) * (part.count / count)
    step = part.mean - mean
    scatter = (
        whole.scatter - part.scatter - np.outer(step, step) * (count * part.count / whole.count)
    )
    return Moments(count, mean, scatter)


def stream_moments(blocks: Iterable[np.ndarray]) -> Moments:
    """Of [b, D] blocks, one in memory at a time.

    Raises:
        ValueError: there is none.
    """
    found: Moments | None = None
    for block in blocks:
        part = moments_of(block)
        found = part if found is None else merge(found, part)
    if found is None:
        raise ValueError("moments of no rows")
    return found
