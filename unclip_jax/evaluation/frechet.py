"""The Fréchet distance between two Gaussians, and FID (Heusel et al. 2017).

    |m1 - m2|² + tr(C1) + tr(C2) - 2 tr((C1 C2)^½)

The last trace is that of (S C2 S)^½ with S = C1^½: a symmetric matrix, whose eigenvalues are real
and not negative. A square root of the product itself can come out complex or not converge.

FID is biased by about 1/N and means nothing below a few thousand pictures: two halves of one set
of 300 are 100 apart. Its N stands beside it; for small N there is `kernel_distances.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unclip_jax.evaluation.intervals import Estimate, jackknife_error, normal_interval
from unclip_jax.evaluation.moments import (
    Moments,
    moments_of,
    stream_moments,
    without,
)

GROUPS = 10
"""Of each sample, left out one at a time for the error of FID."""
BLOCK = 4096
"""Rows in float64 at a time."""


def square_root(matrix: np.ndarray) -> np.ndarray:
    """The square root of a symmetric matrix without negative eigenvalues, [D, D] float64."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(a: Moments, b: Moments, root_a: np.ndarray | None = None) -> float:
    """Between the Gaussians with these moments, never negative.

    Args:
        root_a: `square_root(a.covariance)`, where it is known.
    Raises:
        ValueError: fewer than two rows, or features of two widths.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {a.mean.shape[0]} and of {b.mean.shape[0]} numbers")
    root = square_root(a.covariance) if root_a is None else root_a
    inner = root @ b.covariance @ root
    values = np.linalg.eigvalsh((inner + inner.T) / 2)
    shared = np.sqrt(np.maximum(values, 0)).sum()
    step = a.mean - b.mean
    distance = step @ step + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared
    return float(max(distance, 0.0))


def fid(generated: np.ndarray, real: np.ndarray, groups: int = GROUPS) -> Estimate:
    """FID with an interval from leaving out a tenth of each sample in turn.

    A bootstrap would be wrong: pictures drawn twice make the covariance smaller and FID larger.
    The interval is of the noise, not of the bias.

    Args:
        generated, real: [N, D] and [M, D] float, at least three rows each; with fewer than 2
            `groups` rows each row is left out.
    Raises:
        ValueError: fewer rows, or two widths.
    """
    if min(len(generated), len(real)) < 3:
        raise ValueError(f"FID of {len(generated)} and {len(real)} rows: need three or more")
    generated, real = _in_their_span(generated, real)
    a, b = stream_moments(_blocks(generated)), stream_moments(_blocks(real))
    root_a, root_b = square_root(a.covariance), square_root(b.covariance)
    value = frechet_distance(a, b, root_a)
    less_a = [frechet_distance(b, part, root_b) for part in _leave_out(generated, a, groups)]
    less_b = [frechet_distance(a, part, root_a) for part in _leave_out(real, b, groups)]
    found = normal_interval(value, jackknife_error(less_a, less_b))
    return Estimate(found.value, max(0.0, found.low), found.high)


def _in_their_span(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fewer rows than features: the same distance in the space that the rows span, which is less
    work by the third power."""
    if len(a) + len(b) >= a.shape[1] or a.shape[1] != b.shape[1]:
        return a, b
    rows = np.concatenate([a, b]).astype(np.float64)
    rows -= rows.mean(axis=0)
    rows = rows @ np.linalg.qr(rows.T)[0]
    return rows[: len(a)], rows[len(a) :]


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces of a few thousand: all of them in float64 would be twice the features."""
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def _leave_out(rows: np.ndarray, whole: Moments, groups: int) -> list[Moments]:
    """The moments without each of the groups: every `groups`-th row, so that order is no matter."""
    groups = groups if len(rows) >= 2 * groups else len(rows)
    return [without(whole, moments_of(rows[start::groups])) for start in range(groups)]
