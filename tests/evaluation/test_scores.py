"""Scores against values that follow by hand."""

from __future__ import annotations

import numpy as np
import pytest

from unclip_jax.evaluation.scores import (
    chance_at_1,
    other_cosines,
    own_is_first,
    paired_cosine,
    ranks,
    recall_at,
    same,
    unpaired_cosine,
)

SIMILARITY = np.array([[0.9, 0.1, 0.0], [0.8, 0.5, 0.6], [0.3, 0.2, 0.1]])
DIAGONAL = np.eye(3, dtype=bool)


def test_ranks_and_recall() -> None:
    assert ranks(SIMILARITY, DIAGONAL).tolist() == [0, 2, 2]
    assert recall_at(SIMILARITY, DIAGONAL, 1) == pytest.approx(1 / 3)
    assert recall_at(SIMILARITY, DIAGONAL, 2) == pytest.approx(1 / 3)
    assert recall_at(SIMILARITY, DIAGONAL, 3) == 1.0
    # The other direction: queries are columns.
    assert recall_at(SIMILARITY.T, DIAGONAL, 1) == pytest.approx(2 / 3)


def test_any_right_answer_counts() -> None:
    relevant = np.array([[False, True, True]])
    similarity = np.array([[0.5, 0.1, 0.6]])
    assert ranks(similarity, relevant).tolist() == [0]
    assert ranks(np.array([[0.7, 0.1, 0.6]]), relevant).tolist() == [1]


def test_model_that_cannot_tell_scores_nothing() -> None:
    assert recall_at(np.zeros((4, 4)), np.eye(4, dtype=bool), 1) == 0.0
    assert recall_at(np.zeros((4, 4)), np.eye(4, dtype=bool), 3) == 0.0
    assert recall_at(np.full((4, 4), np.nan), np.eye(4, dtype=bool), 3) == 0.0
    one_nan = np.array([[0.5, np.nan, 0.1]])
    assert ranks(one_nan, np.array([[True, False, False]])).tolist() == [1]
    assert not own_is_first(np.zeros((2, 3, 5))).any()
    assert not own_is_first(np.full((2, 5), np.nan)).any()


def test_ranks_refuse_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="no right answer"):
        ranks(SIMILARITY, np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match="similarity"):
        ranks(SIMILARITY, np.ones((3, 2), bool))


def test_chance() -> None:
    relevant = same(("a", "b", "a"), ("a", "b", "c", "a"))
    assert relevant.tolist()[1] == [False, True, False, False]
    assert chance_at_1(relevant) == pytest.approx((2 / 4 + 1 / 4 + 2 / 4) / 3)
    # Many guesses come to the same.
    rng = np.random.default_rng(0)
    tiled = np.tile(relevant, (4000, 1))
    assert recall_at(rng.random(tiled.shape), tiled, 1) == pytest.approx(
        chance_at_1(relevant), abs=0.02
    )


def test_own_is_first() -> None:
    similarity = np.array([[[0.5, 0.4, 0.1], [0.5, 0.6, 0.1]], [[0.2, 0.2, 0.1], [1, 0, 0.9]]])
    assert own_is_first(similarity).tolist() == [[True, False], [False, True]]


def test_cosines() -> None:
    a = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    b = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert paired_cosine(a, b) == pytest.approx((0 + 1 + 0.6) / 3)
    products = a @ b.T
    others = products[~np.eye(3, dtype=bool)]
    assert unpaired_cosine(a, b) == pytest.approx(others.mean())
    wanted = [(products[0, 1] + products[0, 2]) / 2, (products[1, 0] + products[1, 2]) / 2]
    assert other_cosines(a, b)[:2] == pytest.approx(wanted)
    assert unpaired_cosine(np.eye(4), np.eye(4)) == pytest.approx(0)
    with pytest.raises(ValueError, match="other row"):
        unpaired_cosine(a[:1], b[:1])
