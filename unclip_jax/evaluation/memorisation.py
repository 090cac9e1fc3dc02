"""Does a model draw its training pictures again?

How near a generated picture is to the training set says nothing alone: some features are near to
each other everywhere. Two yardsticks: how far the picture that was found is from its own nearest
neighbour in the training set, and how near real pictures come that were held out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unclip_jax.evaluation.intervals import (
    Estimate,
    median_interval,
    share_interval,
)
from unclip_jax.evaluation.neighbours import BLOCK, nearest

COPY = 1 / 3
"""Ratio below which a picture counts as a copy; Yoon et al. 2023 draw the line there for the
nearest over the second nearest training picture."""


@dataclass(frozen=True)
class MemorisationScores:
    """Of generated pictures against a training set."""

    ratio: Estimate
    """Median over the pictures of `nearest_ratio`; 0 for copies."""
    copies: Estimate
    """Share of the pictures with a ratio below `COPY`."""
    to_held_out: Estimate | None
    """Median distance to the training set over that of held-out real pictures, 1 where the model
    comes no nearer than those; None without any."""
    ratios: np.ndarray
    """[N] float64, `nearest_ratio` of each picture."""
    rows: np.ndarray
    """[N] int, the training row nearest to each."""


def nearest_ratio(generated: np.ndarray, train: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """Distance to the nearest training row, over that row's to the nearest that differs from it.

    A training picture that is there twice is the likeliest to be learnt by heart, so its own copy
    is not the yardstick.

    Args:
        generated, train: [N, D] and [M, D] float, two different rows in `train` at least.
    Returns:
        [N] float64; 0 for a copy.
    Raises:
        ValueError: all training rows are equal.
    """
    found = nearest(generated, train, block)
    rows, place = np.unique(found.row, return_inverse=True)
    own = nearest(train[rows], train, block, skip_equal=True).distance
    if not np.isfinite(own).all():
        raise ValueError("all training rows are equal: there is no distance to compare with")
    return found.distance / own[place]


def memorisation(
    generated: np.ndarray, train: np.ndarray, held_out: np.ndarray | None = None, seed: int = 0
) -> MemorisationScores:
    """The ratios of [N, D] generated rows to [M, D] training rows.

    Args:
        held_out: [K, D] rows of real pictures that the model was not trained on.
    """
    ratios, near = nearest_ratio(generated, train), nearest(generated, train)
    to_held_out = None
    if held_out is not None:
        scale = float(np.median(nearest(held_out, train).distance))
        to_held_out = median_interval(near.distance / scale, seed) if scale > 0 else None
    return MemorisationScores(
        ratio=median_interval(ratios, seed),
        copies=share_interval(ratios < COPY),
        to_held_out=to_held_out,
        ratios=ratios,
        rows=near.row,
    )
