"""The squared maximum mean discrepancy of two samples (Gretton et al. 2012), block by block.

    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y)

All that its estimates and their errors need are the row sums of the three kernel matrices, of which
one block is in memory at a time. The error is the jackknife's: what the estimate is without each
row follows from the row sums, so it costs nothing more. Where both samples are of one distribution
the estimate is degenerate and the interval somewhat too wide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unclip_jax.evaluation.intervals import Estimate, jackknife_error, normal_interval

BLOCK = 1024
"""Rows and columns of a block."""
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""[n, D], [m, D] float64 → [n, m] float64, symmetric."""


@dataclass(frozen=True, eq=False)
class KernelSums:
    """Of the three matrices; [N] for the rows x, [M] for the rows y, float64."""

    xx: np.ndarray
    """Row i: the sum of k(x_i, x_j) over j, i among them."""
    yy: np.ndarray
    xy: np.ndarray
    """Row i: the sum of k(x_i, y_j) over j."""
    yx: np.ndarray
    """Row j: the sum of k(x_i, y_j) over i."""
    diagonal_x: np.ndarray
    """k(x_i, x_i)."""
    diagonal_y: np.ndarray


def kernel_sums(x: np.ndarray, y: np.ndarray, kernel: Kernel, block: int = BLOCK) -> KernelSums:
    """Of x [N, D] and y [M, D], in float64 whatever they come in.

    Raises:
        ValueError: two widths.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features {x.shape} and {y.shape}: need [N, D] and [M, D]")
    xx, diagonal_x = _own_sums(x, kernel, block)
    yy, diagonal_y = _own_sums(y, kernel, block)
    xy, yx = np.zeros(len(x)), np.zeros(len(y))
    for i in range(0, len(x), block):
        rows = x[i : i + block].astype(np.float64)
        for j in range(0, len(y), block):
            values = kernel(rows, y[j : j + block].astype(np.float64))
            xy[i : i + block] += values.sum(axis=1)
            yx[j : j + block] += values.sum(axis=0)
    return KernelSums(xx, yy, xy, yx, diagonal_x, diagonal_y)


def _own_sums(x: np.ndarray, kernel: Kernel, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Row sums and diagonal; the blocks below the diagonal are those above it."""
    sums, diagonal = np.zeros(len(x)), np.zeros(len(x))
    for i in range(0, len(x), block):
        rows = x[i : i + block].astype(np.float64)
        for j in range(i, len(x), block):
            values = kernel(rows, x[j : j + block].astype(np.float64))
            sums[i : i + block] += values.sum(axis=1)
            if i == j:
                diagonal[i : i + block] = np.diagonal(values)
            else:
                sums[j : j + block] += values.sum(axis=0)
    return sums, diagonal


def unbiased_mmd(sums: KernelSums) -> Estimate:
    """The U-statistic, which leaves k(x_i, x_i) out; it can be negative (eq. 3 there).

    Raises:
        ValueError: a sample has fewer than three rows, so that none can be left out.
    """
    n, m = len(sums.xx), len(sums.yy)
    if min(n, m) < 3:
        raise ValueError(f"MMD of {n} and {m} rows: need three or more of each")
    own_x, own_y = sums.xx - sums.diagonal_x, sums.yy - sums.diagonal_y
    inside_x, inside_y = own_x.sum(), own_y.sum()
    across, mean_x = sums.xy.sum(), inside_x / (n * (n - 1))
    mean_y = inside_y / (m * (m - 1))
    value = mean_x + mean_y - 2 * across / (n * m)
    less_x = (inside_x - 2 * own_x) / ((n - 1) * (n - 2)) + mean_y
    less_x -= 2 * (across - sums.xy) / ((n - 1) * m)
    less_y = mean_x + (inside_y - 2 * own_y) / ((m - 1) * (m - 2))
    less_y -= 2 * (across - sums.yx) / (n * (m - 1))
    return normal_interval(value, jackknife_error(less_x, less_y))


def biased_mmd(sums: KernelSums) -> Estimate:
    """The V-statistic, the mean over all pairs with i = j among them; never negative (eq. 5 there).

    Raises:
        ValueError: a sample has fewer than two rows.
    """
    n, m = len(sums.xx), len(sums.yy)
    inside_x, inside_y, across = sums.xx.sum(), sums.yy.sum(), sums.xy.sum()
    mean_x, mean_y = inside_x / n**2, inside_y / m**2
    value = mean_x + mean_y - 2 * across / (n * m)
    less_x = (inside_x - 2 * sums.xx + sums.diagonal_x) / max(n - 1, 1) ** 2 + mean_y
    less_x -= 2 * (across - sums.xy) / (max(n - 1, 1) * m)
    less_y = mean_x + (inside_y - 2 * sums.yy + sums.diagonal_y) / max(m - 1, 1) ** 2
    less_y -= 2 * (across - sums.yx) / (n * max(m - 1, 1))
    return normal_interval(value, jackknife_error(less_x, less_y))
