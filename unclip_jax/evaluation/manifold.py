"""Precision and recall, density and coverage: is what is drawn like what is real, and all of it?

A sample's manifold is the union of balls around its rows that reach to the k-th nearest other row.
Intervals are of the rows that are counted, with the manifold taken as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unclip_jax.evaluation.intervals import Estimate, mean_interval, share_interval
from unclip_jax.evaluation.neighbours import BLOCK, distance_blocks, neighbour_radii

PRECISION_K, DENSITY_K = 3, 5
"""Neighbours in the papers of precision (Kynkäänniemi) and of density (Naeem)."""


@dataclass(frozen=True)
class ManifoldScores:
    """Precision, recall and coverage are 0 to 1; real pictures have density 1."""

    precision: Estimate
    """Share of the generated rows within the real manifold."""
    recall: Estimate
    """Share of the real rows within the generated manifold."""
    density: Estimate
    """Real balls that a generated row lies in, over k, on average."""
    coverage: Estimate
    """Share of the real rows whose ball holds a generated row."""


def manifold_scores(
    generated: np.ndarray,
    real: np.ndarray,
    precision_k: int = PRECISION_K,
    density_k: int = DENSITY_K,
    seed: int = 0,
    block: int = BLOCK,
) -> ManifoldScores:
    """Kynkäänniemi et al. 2019 (eq. 1, 2) and Naeem et al. 2020 (eq. 3, 4).

    Args:
        generated, real: [N, D] and [M, D] float, each with more rows than the neighbours.
    Raises:
        ValueError: fewer.
    """
    radius_real = neighbour_radii(real, precision_k, block)
    radius_generated = neighbour_radii(generated, precision_k, block)
    ball_real = neighbour_radii(real, density_k, block)
    is_precise, in_balls = np.zeros(len(generated), bool), np.zeros(len(generated), int)
    is_recalled, is_covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, columns, distances in distance_blocks(generated, real, block):
        is_precise[rows] |= (distances <= radius_real[columns]).any(axis=1)
        is_recalled[columns] |= (distances <= radius_generated[rows, None]).any(axis=0)
        in_ball = distances <= ball_real[columns]
        in_balls[rows] += in_ball.sum(axis=1)
        is_covered[columns] |= in_ball.any(axis=0)
    return ManifoldScores(
        precision=share_interval(is_precise),
        recall=share_interval(is_recalled),
        density=mean_interval(in_balls / density_k, seed),
        coverage=share_interval(is_covered),
    )
