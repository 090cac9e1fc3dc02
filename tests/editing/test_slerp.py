"""Spherical interpolation: ends, middle, lengths, and directions that nearly agree."""

from __future__ import annotations

import numpy as np
import pytest

from unclip_jax.editing.slerp import slerp

RANDOM = np.random.default_rng(0).standard_normal((2, 5, 4, 4, 3)).astype(np.float32)


def test_ends_are_the_inputs() -> None:
    a, b = RANDOM
    np.testing.assert_allclose(slerp(a, b, 0.0), a, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(slerp(a, b, 1.0), b, rtol=1e-6, atol=1e-7)


def test_it_turns_evenly_and_keeps_the_length() -> None:
    a, b = np.eye(3, dtype=np.float32)[:2][:, None]
    for theta in (0.25, 0.5, 0.9):
        turned = slerp(a, b, theta)[0]
        angle = theta * np.pi / 2
        np.testing.assert_allclose(turned, [np.cos(angle), np.sin(angle), 0], atol=1e-6)


def test_each_row_has_its_own_theta() -> None:
    a, b = RANDOM
    theta = np.linspace(0, 1, len(a))
    for row, place in enumerate(theta):
        alone = slerp(a[row : row + 1], b[row : row + 1], float(place))
        np.testing.assert_array_equal(slerp(a, b, theta)[row], alone[0])


@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-4])
def test_nearly_equal_directions_are_mixed_evenly(size: float) -> None:
    a = np.array([[1.0, 0, 0]], np.float32)
    b = a + np.array([[0, size, 0]], np.float32)
    np.testing.assert_allclose(slerp(a, b, 0.5), a + (b - a) / 2, atol=1e-7)


def test_noise_keeps_its_variance() -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 1, 64, 64, 3)).astype(np.float32)
    assert abs(slerp(a, b, 0.5).std() - 1) < 0.02  # a mean of the two would have 0.71
