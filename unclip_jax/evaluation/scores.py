"""Scores of embeddings as pure functions on numpy arrays.

Ties and NaNs count against the model: a network that gives every picture the same embedding, or a
broken one, never scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def same(rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """[N, M] bool: text i of `rows` is text j of `columns`."""
    return np.asarray(rows)[:, None] == np.asarray(columns)[None]


def ranks(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """How many wrong candidates come before the best right one.

    Args:
        similarity: [N, M] float, of query i and candidate j.
        relevant: [N, M] bool, candidate j is a right answer to query i.
    Returns:
        [N] int, 0 where a right answer is first. A wrong candidate that ties comes before.
    Raises:
        ValueError: the shapes differ, or a query has no right answer.
    """
    if similarity.shape != relevant.shape or similarity.ndim != 2:
        raise ValueError(f"similarity {similarity.shape} and relevant {relevant.shape}: need one")
    if not relevant.any(axis=1).all():
        raise ValueError("a query has no right answer among the candidates")
    best = np.where(relevant, similarity, -np.inf).max(axis=1, keepdims=True)
    # "not below" rather than "above or equal": a comparison with NaN is false.
    return np.sum(~relevant & ~(similarity < best), axis=1)


def recall_at(similarity: np.ndarray, relevant: np.ndarray, k: int) -> float:
    """R@k: the share of queries with a right answer among their k nearest candidates.

    Arguments and errors as `ranks`.
    """
    return float(np.mean(ranks(similarity, relevant) < k))


def chance_at_1(relevant: np.ndarray) -> float:
    """R@1 of a guess: the mean over queries of (right candidates) / (candidates).

    Args:
        relevant: [N, M] bool.
    """
    return float(np.mean(relevant))


def own_is_first(similarity: np.ndarray) -> np.ndarray:
    """Whether candidate 0 is nearer than all the others.

    Args:
        similarity: [..., C] float; candidate 0 is the right answer.
    Returns:
        [...] bool.
    """
    return np.all(similarity[..., :1] > similarity[..., 1:], axis=-1)


def paired_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of row i of one with row i of the other.

    Args:
        a, b: [N, E] float, unit norm.
    """
    return float(np.mean(np.sum(a * b, axis=-1)))


def unpaired_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of row i of one with row j of the other over all i ≠ j.

    This is what a row drawn at random among the others gives on average.

    Args:
        a, b: [N, E] float, unit norm, N at least 2.
    """
    return float(np.mean(other_cosines(a, b)))


def other_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N] mean cosine of row i of one with the rows j ≠ i of the other.

    Args:
        a, b: [N, E] float, unit norm, N at least 2.
    """
    count = len(a)
    if count < 2:
        raise ValueError("one row has no other row")
    return (a @ b.sum(axis=0) - np.sum(a * b, axis=-1)) / (count - 1)
