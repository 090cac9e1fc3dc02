"""Generated pictures beside the true ones, where those exist: SSIM and the distance of features."""

from __future__ import annotations

import numpy as np

from unclip_jax.evaluation.intervals import Estimate, mean_interval

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
RANGE = 255.0


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004, eq. 13) with their Gaussian window of 11 × 11.

    The window lies inside the picture everywhere; the three channels are averaged (the paper has
    one).

    Args:
        a, b: [N, H, W, C] uint8, H and W at least 11.
    Returns:
        [N] float64, at most 1, and 1 for equal pictures.
    Raises:
        ValueError: two shapes, or pictures smaller than the window.
    """
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"pictures {a.shape} and {b.shape}: need one shape, {WINDOW} or larger")
    return np.array([_ssim(x, y) for x, y in zip(a, b, strict=True)])


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Of one pair, so that the memory is that of a picture and not of all."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    # The paper's weights sum to one, so these are the weighted variances of eq. 15 and 16.
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    both = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    return float(np.mean(top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def _blur(x: np.ndarray) -> np.ndarray:
    """[H, W, C] → [H - 10, W - 10, C], the window in two passes."""
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    high, wide = x.shape[0] - WINDOW + 1, x.shape[1] - WINDOW + 1
    rows = np.zeros((high, *x.shape[1:]))
    found = np.zeros((high, wide, x.shape[2]))
    for i, weight in enumerate(weights):
        rows += weight * x[i : i + high]
    for i, weight in enumerate(weights):
        found += weight * rows[:, i : i + wide]
    return found


def mean_ssim(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Estimate:
    """The mean of `ssim` over the pairs."""
    return mean_interval(ssim(a, b), seed)


def paired_distance(generated: np.ndarray, true: np.ndarray, seed: int = 0) -> Estimate:
    """Mean Euclidean distance of each row to the true one's.

    Args:
        generated, true: [N, D] float.
    """
    step = generated.astype(np.float64) - true.astype(np.float64)
    return mean_interval(np.linalg.norm(step, axis=1), seed)


def paired_similarity(generated: np.ndarray, true: np.ndarray, seed: int = 0) -> Estimate:
    """Mean cosine of each row with the true one's: of CLIP embeddings what papers call CLIP-I.

    Args:
        generated, true: [N, D] float.
    """
    a, b = (rows.astype(np.float64) for rows in (generated, true))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return mean_interval((a * b).sum(axis=1) / np.maximum(lengths, 1e-12), seed)
