"""SSIM against its definition and scipy's filter, paired distances, caption match, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from unclip_jax.evaluation.caption_match import clip_score, r_precision
from unclip_jax.evaluation.similarity import (
    mean_ssim,
    paired_distance,
    paired_similarity,
    ssim,
)


def noise(seed: int, shape: tuple[int, ...] = (3, 20, 24, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_flat_pictures_by_hand() -> None:
    a, b = np.full((1, 11, 11, 3), 100, np.uint8), np.full((1, 11, 11, 3), 50, np.uint8)
    c1 = (0.01 * 255) ** 2
    wanted = (2 * 100 * 50 + c1) / (100**2 + 50**2 + c1)  # no variance: the second factor is 1
    assert ssim(a, b) == pytest.approx([wanted])


def test_equal_negative_and_shuffled() -> None:
    a = noise(0)
    assert ssim(a, a) == pytest.approx([1, 1, 1])
    assert (ssim(a, 255 - a) < -0.5).all()
    assert np.abs(ssim(a, noise(1))).max() < 0.1
    found = mean_ssim(a, a)
    assert found.value == found.low == found.high == pytest.approx(1)
    with pytest.raises(ValueError, match="one shape"):
        ssim(a, a[:2])
    with pytest.raises(ValueError, match="11 or larger"):
        ssim(a[:, :10], a[:, :10])


def test_definition_with_scipys_filter() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    a = noise(2)
    b = np.clip(a + np.random.default_rng(3).normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    for one, (x, y) in zip(ssim(a, b), zip(a, b, strict=True), strict=True):
        values = []
        for channel in range(3):
            u, v = (z[..., channel].astype(float) for z in (x, y))

            def blur(z: np.ndarray) -> np.ndarray:
                return ndimage.gaussian_filter(z, 1.5, radius=5)[5:-5, 5:-5]

            mu, mv = blur(u), blur(v)
            su, sv, suv = blur(u * u) - mu**2, blur(v * v) - mv**2, blur(u * v) - mu * mv
            c1, c2 = 6.5025, 58.5225
            values.append(
                ((2 * mu * mv + c1) * (2 * suv + c2)) / ((mu**2 + mv**2 + c1) * (su + sv + c2))
            )
        assert one == pytest.approx(np.mean(values), rel=1e-9)


def test_paired_features() -> None:
    a = np.array([[3.0, 0], [1, 1]], np.float32)
    b = np.array([[0.0, 4], [1, 1]], np.float32)
    assert paired_distance(a, b).value == pytest.approx((5 + 0) / 2)
    assert paired_similarity(a, b).value == pytest.approx((0 + 1) / 2)


def test_clip_score() -> None:
    images = np.array([[1.0, 0], [0, 1], [1, 0]])
    texts = np.array([[0.6, 0.8], [0, 1], [-1, 0]])
    found = clip_score(images, texts)
    assert found.value == pytest.approx((60 + 100 + 0) / 3)  # below zero counts as zero
    assert 0 <= found.low < found.value < found.high <= 100


def test_r_precision() -> None:
    captions = [f"text {number}" for number in range(30)]
    texts = np.eye(30)
    found = r_precision(texts, texts, captions, 10)
    assert found.value == found.high == 1 and found.low < 1
    assert r_precision(texts[::-1], texts, captions, 10).value == 0
    blind = r_precision(np.ones((30, 30)), texts, captions, 10)
    assert blind.value == 0  # ties are misses
    # The same caption is no other one.
    doubled = r_precision(texts[[0, 0, 1]], texts[[0, 0, 1]], ["a", "a", "b"])
    assert doubled.value == 1
    with pytest.raises(ValueError, match="two different"):
        r_precision(texts[:2], texts[:2], ["a", "a"])


def test_r_precision_of_guesses_is_chance() -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(2, 400, 16))
    found = r_precision(images, texts, [str(number) for number in range(400)], 5)
    assert found.low < 1 / 5 < found.high
