"""Spherical interpolation (Shoemake 1985)."""

from __future__ import annotations

import numpy as np


def slerp(a: np.ndarray, b: np.ndarray, theta: float | np.ndarray) -> np.ndarray:
    """From `a` (theta 0) to `b` (theta 1) along the arc between their directions.

    Lengths go evenly from one to the other, so that unit vectors stay unit vectors and noise keeps
    its variance.

    Args:
        a, b: [N, ...]; every row is one vector.
        theta: [N] or a number, in [0, 1].
    Returns:
        [N, ...] float32.
    """
    shape, rows = a.shape, len(a)
    a, b = (x.reshape(rows, -1).astype(np.float64) for x in (a, b))
    theta = np.broadcast_to(np.asarray(theta, np.float64), rows)[:, None]
    lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    units = [x / np.maximum(length, 1e-12) for x, length in zip((a, b), lengths, strict=True)]
    # By half chords: exact for directions that nearly agree, where the arccosine is not.
    chord, sum_ = (
        np.linalg.norm(x, axis=1, keepdims=True) for x in (units[0] - units[1], sum(units))
    )
    angle = 2 * np.arctan2(chord, sum_)
    sine = np.sin(angle)
    is_arc = sine > 1e-9
    safe = np.where(is_arc, sine, 1.0)
    first = np.where(is_arc, np.sin((1 - theta) * angle) / safe, 1 - theta)
    second = np.where(is_arc, np.sin(theta * angle) / safe, theta)
    length = (1 - theta) * lengths[0] + theta * lengths[1]
    return ((first * units[0] + second * units[1]) * length).reshape(shape).astype(np.float32)
