"""Distances to nearest neighbours, block by block: the matrix of all pairs is never there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 1024
"""Rows and columns of a block."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """For each row of one sample its nearest row of another."""

    distance: np.ndarray
    """[N] float64, Euclidean."""
    row: np.ndarray
    """[N] int, of the other sample; the first of equally near ones."""


def distance_blocks(
    x: np.ndarray, y: np.ndarray, block: int = BLOCK
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Rows of x [N, D], rows of y [M, D], and the Euclidean distances between them, float64.

    All columns of a block of rows come one after another. Both are moved by the mean of y first:
    |x|² + |y|² - 2 x · y loses digits far from the origin, and features are not negative.

    Raises:
        ValueError: two widths, or a sample without rows.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not (len(x) and len(y)):
        raise ValueError(f"features {x.shape} and {y.shape}: need [N, D] and [M, D] with rows")
    centre = y.mean(axis=0, dtype=np.float64)
    for i in range(0, len(x), block):
        rows = x[i : i + block].astype(np.float64) - centre
        squares = (rows * rows).sum(axis=1)[:, None]
        for j in range(0, len(y), block):
            columns = y[j : j + block].astype(np.float64) - centre
            squared = squares + (columns * columns).sum(axis=1) - 2 * (rows @ columns.T)
            # Of two equal rows rounding would leave a distance of a millionth of their length.
            equal = squared <= 1e-12 * (squares + (columns * columns).sum(axis=1))
            squared = np.where(equal, 0.0, squared)
            yield slice(i, i + len(rows)), slice(j, j + len(columns)), np.sqrt(squared)


def nearest(
    x: np.ndarray, y: np.ndarray, block: int = BLOCK, *, skip_equal: bool = False
) -> Nearest:
    """For each row of x [N, D] the nearest row of y [M, D].

    Args:
        skip_equal: the nearest that is not the same; infinitely far where all are.
    """
    best = np.full(len(x), np.inf)
    row = np.zeros(len(x), int)
    for rows, columns, distances in distance_blocks(x, y, block):
        if skip_equal:
            distances[distances == 0] = np.inf
        place = distances.argmin(axis=1)
        found = distances[np.arange(len(place)), place]
        closer = found < best[rows]
        row[rows] = np.where(closer, place + columns.start, row[rows])
        best[rows] = np.where(closer, found, best[rows])
    return Nearest(best, row)


def neighbour_radii(x: np.ndarray, k: int, block: int = BLOCK) -> np.ndarray:
    """For each row the distance to its k-th nearest other row of the same sample.

    Args:
        x: [N, D] float, N above k.
    Returns:
        [N] float64.
    Raises:
        ValueError: k is not 1 to N - 1.
    """
    if not 1 <= k < len(x):
        raise ValueError(f"neighbour {k} of {len(x)} rows: need 1 to {len(x) - 1}")
    best = np.full((len(x), k), np.inf)
    for rows, columns, distances in distance_blocks(x, x, block):
        own = np.arange(rows.start, rows.stop)
        inside = (columns.start <= own) & (own < columns.stop)
        distances[inside, own[inside] - columns.start] = np.inf
        both = np.concatenate([best[rows], distances], axis=1)
        best[rows] = np.partition(both, k - 1, axis=1)[:, :k]
    return best.max(axis=1)
