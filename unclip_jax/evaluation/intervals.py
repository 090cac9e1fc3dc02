"""How sure a score is: 95 % intervals from what it was computed of.

Three sources of one interval. A mean of independent rows is resampled (bootstrap); a share has
Wilson's interval, which is not empty at 0 and 1; what depends on all rows at once is computed again
without some of them (jackknife). All draw from a seed, so that a report is the same twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
"""Standard deviations to both sides that hold 95 % of a normal distribution."""
RESAMPLES = 2000
_BLOCK = 1 << 22
"""Drawn row numbers in memory at a time."""


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % interval."""

    value: float
    low: float
    high: float


def normal_interval(value: float, standard_error: float) -> Estimate:
    """The interval of a score whose errors are normal."""
    reach = Z95 * standard_error
    return Estimate(float(value), float(value - reach), float(value + reach))


def share_interval(hits: np.ndarray) -> Estimate:
    """A share of independent rows (Wilson 1927, score interval).

    Args:
        hits: [N] bool.
    Raises:
        ValueError: there is no row.
    """
    count = hits.size
    if count == 0:
        raise ValueError("a share of no rows")
    share, scale = float(np.mean(hits)), 1 + Z95**2 / count
    centre = (share + Z95**2 / (2 * count)) / scale
    reach = Z95 * np.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2)) / scale
    # At 0 and 1 the formula's own ends are there up to rounding.
    low, high = max(0.0, centre - reach), min(1.0, centre + reach)
    return Estimate(share, float(min(low, share)), float(max(high, share)))


def mean_interval(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean of independent rows, by the percentile bootstrap (Efron 1979).

    Args:
        values: [N] float.
    """
    values = np.asarray(values, np.float64)
    return _bootstrap(values, seed, lambda drawn: drawn.mean(axis=-1), float(values.mean()))


def median_interval(values: np.ndarray, seed: int = 0) -> Estimate:
    """The median of independent rows, as `mean_interval`."""
    values = np.asarray(values, np.float64)
    return _bootstrap(values, seed, lambda drawn: np.median(drawn, axis=-1), np.median(values))


def jackknife_error(*left_out: np.ndarray | Sequence[float]) -> float:
    """Standard error of a score from what it is without each row, or group of rows of one size.

    With several samples (generated and real) each is left out in turn and the variances add.

    Args:
        left_out: for each sample [G], the score without row g (Efron and Stein 1981).
    Raises:
        ValueError: a sample has fewer than two groups.
    """
    variance = 0.0
    for scores in (np.asarray(one, np.float64) for one in left_out):
        count = len(scores)
        if count < 2:
            raise ValueError("leaving one out needs two rows or more")
        variance += (count - 1) / count * float(np.sum((scores - scores.mean()) ** 2))
    return float(np.sqrt(variance))


def _bootstrap(
    values: np.ndarray, seed: int, score: Callable[[np.ndarray], np.ndarray], value: float
) -> Estimate:
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values {values.shape}: need [N], N at least 1")
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // len(values))
    found = [
        score(values[rng.integers(len(values), size=(min(step, RESAMPLES - start), len(values)))])
        for start in range(0, RESAMPLES, step)
    ]
    low, high = np.percentile(np.concatenate(found), [2.5, 97.5], method="nearest")
    return Estimate(float(value), float(low), float(high))
