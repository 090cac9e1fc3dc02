"""KID and CMMD against sums over all pairs that are written out, and against their expectation."""

from __future__ import annotations

import numpy as np
import pytest

from unclip_jax.evaluation.kernel_distances import (
    cmmd,
    cubic_kernel,
    gaussian_kernel,
    kid,
    subset_kid,
)
from unclip_jax.evaluation.mmd import biased_mmd, kernel_sums, unbiased_mmd


def samples(n: int, m: int, width: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)), rng.normal(0.3, 1.2, (m, width))


def plain_kid(x: np.ndarray, y: np.ndarray) -> float:
    """Pair after pair."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    def inside(z: np.ndarray) -> float:
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(kernel(z[i], z[j]) for i, j in pairs) / len(pairs)

    across = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    return inside(x) + inside(y) - 2 * across


def test_by_hand() -> None:
    # One feature, x = (0, 1, 2), y = (0, 0, 0): k(a, b) = (a b + 1)³.
    x, y = np.array([[0.0], [1], [2]]), np.zeros((3, 1))
    inside = (1 + 1 + 27) / 3
    assert kid(x, y).value == pytest.approx(inside + 1 - 2)
    assert cubic_kernel(x, x).tolist() == [[1, 1, 1], [1, 8, 27], [1, 27, 125]]


def test_kid_is_the_plain_sum() -> None:
    x, y = samples(23, 17)
    assert kid(x, y).value == pytest.approx(plain_kid(x, y), rel=1e-10)
    assert kid(y, x).value == pytest.approx(kid(x, y).value)
    with pytest.raises(ValueError, match="three or more"):
        kid(x[:2], y)
    with pytest.raises(ValueError, match="features"):
        kid(x, y[:, :3])


@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_blocks_make_no_difference(block: int) -> None:
    x, y = samples(23, 17)
    whole = kernel_sums(x, y, cubic_kernel, 1000)
    parts = kernel_sums(x.astype(np.float32), y.astype(np.float32), cubic_kernel, block)
    for name, array in vars(whole).items():
        np.testing.assert_allclose(getattr(parts, name), array, rtol=1e-4)


@pytest.mark.parametrize("estimate", [unbiased_mmd, biased_mmd])
def test_error_is_that_of_leaving_rows_out(estimate) -> None:
    x, y = samples(9, 7)

    def score(a: np.ndarray, b: np.ndarray) -> float:
        return estimate(kernel_sums(a, b, cubic_kernel)).value

    less_x = np.array([score(np.delete(x, row, 0), y) for row in range(9)])
    less_y = np.array([score(x, np.delete(y, row, 0)) for row in range(7)])
    variance = 8 / 9 * np.sum((less_x - less_x.mean()) ** 2)
    variance += 6 / 7 * np.sum((less_y - less_y.mean()) ** 2)
    found = estimate(kernel_sums(x, y, cubic_kernel))
    assert (found.high - found.value) / 1.959964 == pytest.approx(np.sqrt(variance))


def test_kid_is_unbiased_and_its_interval_holds() -> None:
    """For N(0, I) and N(m, I) in D dimensions E k = 1 + 3 u + 3 v + w, in closed form; u, v and w
    the first three moments of x · y / D."""
    width, shift, rng = 4, 0.8, np.random.default_rng(3)
    found = [
        kid(rng.normal(size=(30, width)), rng.normal(shift, 1, (40, width))) for _ in range(300)
    ]
    # Both standard: v = 1/D. One shifted by m: v = (D + m²)/D². Both: u = m²/D, v, w below.
    square = width * shift**2
    both_u = square / width
    both_v = (width + 2 * square + square**2) / width**2
    both_w = (3 * square * (width + 2 * square) + square**3 + 6 * square) / width**3
    truth = (1 + 3 / width) + (1 + 3 * both_u + 3 * both_v + both_w)
    truth -= 2 * (1 + 3 * (width + square) / width**2)
    values = np.array([one.value for one in found])
    assert values.mean() == pytest.approx(truth, abs=3 * values.std() / np.sqrt(300))
    assert np.mean([one.low <= truth <= one.high for one in found]) > 0.88
    # Of one distribution: zero on average, below it half of the time.
    same = [kid(rng.normal(size=(30, 4)), rng.normal(size=(30, 4))).value for _ in range(300)]
    assert np.mean(same) == pytest.approx(0, abs=3 * np.std(same) / np.sqrt(300))
    assert np.min(same) < 0


def test_subsets() -> None:
    x, y = samples(60, 50)
    found = subset_kid(x, y, subsets=200, size=20)
    assert (found.subsets, found.size) == (200, 20)
    error = found.deviation / np.sqrt(200)
    assert found.mean == pytest.approx(kid(x, y).value, abs=4 * error)
    assert found == subset_kid(x, y, subsets=200, size=20)
    # All rows of both: one subset, which is all pairs.
    whole = subset_kid(x[:50], y)
    assert (whole.size, whole.subsets) == (50, 1) and whole.deviation == pytest.approx(0, abs=1e-9)
    assert whole.mean == pytest.approx(kid(x[:50], y).value)


def test_cmmd_by_hand() -> None:
    # Unit vectors of the plane: squared distances 2 within x, 4 across, 0 within y.
    x, y = np.array([[3.0, 0], [0, 5.0]]), np.array([[-1.0, 0], [-1.0, 0]])
    near, far = np.exp(-2 / 200), np.exp(-4 / 200)
    wanted = 1000 * ((2 + 2 * near) / 4 + 1 - 2 * (far + near) / 2)
    assert cmmd(x, y).value == pytest.approx(wanted)
    assert cmmd(x, x).value == pytest.approx(0, abs=1e-9)


def test_cmmd_is_the_authors_formula() -> None:
    x, y = samples(20, 30, 8)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    gamma = 1 / (2 * 10**2)

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        squares = np.sum(a**2, 1)[:, None] + np.sum(b**2, 1)[None]
        return float(np.mean(np.exp(-gamma * (squares - 2 * a @ b.T))))

    wanted = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    found = cmmd(x, y)
    assert found.value == pytest.approx(wanted, rel=1e-9)
    assert found.low < found.value < found.high
    assert gaussian_kernel(x, x)[3, 3] == pytest.approx(1)
