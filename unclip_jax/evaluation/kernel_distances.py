"""KID on Inception features, and CMMD on CLIP's: MMD² with two kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unclip_jax.evaluation.intervals import Estimate
from unclip_jax.evaluation.mmd import biased_mmd, kernel_sums, unbiased_mmd

SUBSETS, SUBSET_SIZE = 100, 1000
"""Of the original KID."""
SIGMA = 10.0
"""Width of CMMD's kernel."""
CMMD_SCALE = 1000.0


@dataclass(frozen=True)
class SubsetKID:
    """The mean of KIDs of random subsets, as papers print it."""

    mean: float
    deviation: float
    """Standard deviation over the subsets: of one subset, not of the mean."""
    subsets: int
    size: int


def cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x · y / D + 1)³ of [n, D] and [m, D]: [n, m]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """exp(-|x - y|² / (2 · 10²)) of [n, D] and [m, D]: [n, m]."""
    squared = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * (x @ y.T)
    return np.exp(-np.maximum(squared, 0) / (2 * SIGMA**2))


def kid(generated: np.ndarray, real: np.ndarray) -> Estimate:
    """The unbiased KID over all pairs (Bińkowski et al. 2018, section 4); negative within its
    error where both are alike. Papers print it times 1000, or 100.

    Args:
        generated, real: [N, D] and [M, D] float, three rows or more.
    """
    return unbiased_mmd(kernel_sums(generated, real, cubic_kernel))


def subset_kid(
    generated: np.ndarray,
    real: np.ndarray,
    seed: int = 0,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
) -> SubsetKID:
    """KID as its authors estimate it: the mean over subsets of `size` rows of each, drawn without
    repetition; of all rows where a sample has fewer, and once where both have no more than that.
    """
    size = min(size, len(generated), len(real))
    subsets = 1 if size == len(generated) == len(real) else subsets
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        x = generated[rng.permutation(len(generated))[:size]]
        y = real[rng.permutation(len(real))[:size]]
        found.append(unbiased_mmd(kernel_sums(x, y, cubic_kernel)).value)
    return SubsetKID(float(np.mean(found)), float(np.std(found)), subsets, size)


def cmmd(generated: np.ndarray, real: np.ndarray) -> Estimate:
    """1000 · MMD² with a Gaussian kernel on CLIP embeddings (Jayasumana et al. 2024, section 4).

    The authors' judge is CLIP ViT-L/14 at 336 pixels; with another CLIP the number is another one,
    and says which.

    Args:
        generated, real: [N, E] and [M, E] float, made unit norm here.
    """
    found = biased_mmd(kernel_sums(_unit(generated), _unit(real), gaussian_kernel))
    # Never negative, so neither is the end of its interval.
    return Estimate(*(CMMD_SCALE * max(0.0, value) for value in vars(found).values()))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
