"""Intervals against textbook values, and against how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from unclip_jax.evaluation.intervals import (
    Estimate,
    jackknife_error,
    mean_interval,
    median_interval,
    normal_interval,
    share_interval,
)


def test_normal() -> None:
    found = normal_interval(2.0, 0.5)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 1.02002, 2.97998), abs=1e-5)


def test_wilson() -> None:
    # 3 of 10: Wilson's interval is 0.1078 to 0.6032.
    found = share_interval(np.array([True] * 3 + [False] * 7))
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.10779, 0.60322), abs=1e-4)
    # At the ends the normal one would be empty: none of ten can be a quarter.
    none = share_interval(np.zeros(10, bool))
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(0.27753, abs=1e-4)
    every = share_interval(np.ones(10, bool))
    assert (every.value, every.high) == (1, 1) and every.low == pytest.approx(1 - 0.27753, abs=1e-4)
    with pytest.raises(ValueError, match="no rows"):
        share_interval(np.zeros(0, bool))


def test_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    found, error = mean_interval(values), values.std(ddof=1) / 20
    normal = normal_interval(values.mean(), error)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((normal.low, normal.high), abs=0.15 * error)
    assert mean_interval(values) == found != mean_interval(values, seed=1)
    assert mean_interval(np.array([7.0])) == Estimate(7, 7, 7)


def test_bootstrap_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.normal(size=60)) for _ in range(150)]
    assert 0.88 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.99


def test_median() -> None:
    values = np.array([*range(100), np.inf])
    found = median_interval(values)
    assert found.value == 50 and 30 < found.low < 50 < found.high < 70


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=30)
    left_out = [np.delete(values, row).mean() for row in range(30)]
    assert jackknife_error(left_out) == pytest.approx(values.std(ddof=1) / np.sqrt(30))
    assert jackknife_error(left_out, left_out) == pytest.approx(
        values.std(ddof=1) * np.sqrt(2 / 30)
    )
    with pytest.raises(ValueError, match="two rows"):
        jackknife_error([1.0])
