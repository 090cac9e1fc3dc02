"""FID against Gaussians in closed form, against scipy's square root, and its error."""

from __future__ import annotations

import numpy as np
import pytest

from unclip_jax.evaluation.frechet import fid, frechet_distance, square_root
from unclip_jax.evaluation.moments import Moments, merge, moments_of, stream_moments, without


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    return Moments(11, np.asarray(mean, float), np.asarray(covariance, float) * 10)


def rows(count: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + 5


def test_moments_are_numpys() -> None:
    x = rows(57, 6, 0)
    found = moments_of(x.astype(np.float32))
    assert found.count == 57
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="two or more"):
        _ = moments_of(x[:1]).covariance


def test_merged_blocks_are_one_pass() -> None:
    # Far from the origin, where the sum of squares would lose every digit.
    x = rows(100, 5, 1) + 1e8
    whole = moments_of(x)
    for sizes in ([100], [1, 99], [33, 33, 34], [1] * 100):
        blocks = np.split(x, np.cumsum(sizes)[:-1])
        found = stream_moments(iter(blocks))
        assert found.count == 100
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(found.scatter, whole.scatter, rtol=1e-5)
    with pytest.raises(ValueError, match="no rows"):
        stream_moments([])


def test_a_part_can_be_taken_away() -> None:
    x = rows(40, 4, 2)
    part, rest = moments_of(x[:10]), moments_of(x[10:])
    found = without(merge(part, rest), part)
    assert found.count == 30
    np.testing.assert_allclose(found.mean, rest.mean, rtol=1e-12)
    np.testing.assert_allclose(found.scatter, rest.scatter, rtol=1e-10)
    with pytest.raises(ValueError, match="nothing is left"):
        without(part, part)


def test_gaussians_in_closed_form() -> None:
    # Covariances that commute: the sum of (m1 - m2)² + (s1 - s2)² over the axes.
    a = gaussian(np.array([1.0, 2, 3]), np.diag([1.0, 4, 9]))
    b = gaussian(np.array([1.0, 0, 4]), np.diag([4.0, 4, 1]))
    assert frechet_distance(a, b) == pytest.approx(0 + 4 + 1 + 1 + 0 + 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    # And turned, so that nothing is diagonal.
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = [gaussian(turn @ one.mean, turn @ one.covariance @ turn.T) for one in (a, b)]
    assert frechet_distance(turned[0], turned[1]) == pytest.approx(10)
    # Without variance it is the distance of the means.
    point = gaussian(np.zeros(3), np.zeros((3, 3)))
    assert frechet_distance(point, a) == pytest.approx(14 + 14)


def test_covariances_that_do_not_commute() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = moments_of(rows(50, 6, 3)), moments_of(rows(60, 6, 4))
    root = linalg.sqrtm(a.covariance @ b.covariance)
    step = a.mean - b.mean
    wanted = step @ step + np.trace(a.covariance + b.covariance - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-9)
    root = square_root(a.covariance)
    np.testing.assert_allclose(root @ root, a.covariance, rtol=1e-10)


def test_fewer_pictures_than_features() -> None:
    """Singular covariances: exact in the span of the rows, where scipy's root fails."""
    x, y = rows(12, 40, 5), rows(15, 40, 6)
    plain = frechet_distance(moments_of(x), moments_of(y))
    assert fid(x, y).value == pytest.approx(plain, rel=1e-6)
    # Two sets in planes that share no direction: nothing of the variances is shared.
    x, y = np.zeros((9, 4)), np.zeros((9, 4))
    x[:, :2], y[:, 2:] = rows(9, 2, 7), rows(9, 2, 8)
    a, b = moments_of(x), moments_of(y)
    wanted = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance)
    assert fid(x, y).value == pytest.approx(wanted)


def test_interval_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(9)
    found = [fid(rng.normal(size=(200, 3)), rng.normal(0.5, 1, (200, 3))) for _ in range(60)]
    spread = np.std([one.value for one in found])
    reach = np.mean([(one.high - one.value) / 1.96 for one in found])
    assert 0.75 < reach / spread < 1.4
    assert all(one.low <= one.value <= one.high and one.low >= 0 for one in found)
    truth = 3 * 0.5**2
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.8


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="3 and of 4"):
        frechet_distance(moments_of(rows(9, 3, 0)), moments_of(rows(9, 4, 0)))
    with pytest.raises(ValueError, match="three or more"):
        fid(rows(2, 3, 0), rows(9, 3, 0))
