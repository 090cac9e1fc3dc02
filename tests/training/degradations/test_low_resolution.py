"""The training pair of an upsampler: crop, small picture, blur, augmentation."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax import Array

from unclip_jax.config import from_dict, to_dict
from unclip_jax.errors import UserError
from unclip_jax.training.degradations import low_resolution
from unclip_jax.training.degradations.low_resolution import (
    DegradationConfig,
    augment,
    downsample,
    gaussian_blur,
    make_low_resolution,
    random_crop,
)

KEY = jax.random.key(11)
KINDS = ("none", "blur", "bsr")


def pictures(rows: int, side: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).random((rows, side, side, 3))
    return (2 * values - 1).astype(np.float32)


# -- crops


def test_crops_come_from_their_own_picture() -> None:
    """Every pixel carries its row and its place, so that a crop says where it was cut."""
    rows, side, size = 40, 12, 3
    place = np.arange(side * side).reshape(1, side, side, 1) + 1000 * np.arange(rows).reshape(
        -1, 1, 1, 1
    )
    crops = np.asarray(jax.jit(random_crop, static_argnums=2)(KEY, jnp.asarray(place), size))
    assert crops.shape == (rows, size, size, 1) and crops.dtype == np.int32
    inside = crops[..., 0] - crops[:, :1, :1, 0]
    np.testing.assert_array_equal(inside, np.broadcast_to(place[0, :3, :3, 0], inside.shape))
    corner = crops[:, 0, 0, 0]
    assert (corner // 1000 == np.arange(rows)).all()
    assert len(np.unique(corner % 1000)) > 15


def test_crops_reach_every_corner() -> None:
    place = jnp.arange(16).reshape(1, 4, 4, 1)
    images = jnp.broadcast_to(place, (300, 4, 4, 1))
    corners = np.asarray(random_crop(KEY, images, 2))[:, 0, 0, 0]
    assert set(corners.tolist()) == {0, 1, 2, 4, 5, 6, 8, 9, 10}


def test_crop_keeps_uint8_and_row_does_not_depend_on_the_batch() -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8)
    crops = random_crop(KEY, jnp.asarray(images), 4)
    assert crops.dtype == jnp.uint8
    np.testing.assert_array_equal(random_crop(KEY, jnp.asarray(images[:2]), 4), crops[:2])
    np.testing.assert_array_equal(random_crop(KEY, jnp.asarray(images), 8), images)


@pytest.mark.parametrize("size", [0, 9])
def test_crop_larger_than_the_picture_is_refused(size: int) -> None:
    with pytest.raises(UserError, match="crop"):
        random_crop(KEY, jnp.zeros((1, 8, 8, 3)), size)


# -- the small picture


def test_area_is_the_mean_of_each_square() -> None:
    images = pictures(2, 8)
    expected = [
        [images[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean((1, 2)) for j in (0, 1)]
        for i in (0, 1)
    ]
    found = downsample(jnp.asarray(images), 4)
    np.testing.assert_allclose(found, np.moveaxis(np.array(expected), 2, 0), atol=1e-6)


def test_cubic_keeps_a_ramp_and_stays_in_range() -> None:
    ramp = np.linspace(-0.8, 0.8, 32, dtype=np.float32)
    images = np.broadcast_to(ramp[None, :, None, None], (1, 32, 32, 3))
    small = np.asarray(downsample(jnp.asarray(images), 4, "cubic"))[0, :, 0, 0]
    np.testing.assert_allclose(small[2:6], ramp.reshape(8, 4).mean(axis=1)[2:6], atol=1e-5)
    edge = np.sign(ramp)[None, :, None, None] * np.ones((1, 32, 32, 3), np.float32)
    assert np.abs(downsample(jnp.asarray(edge), 4, "cubic")).max() <= 1


@pytest.mark.parametrize("method", ["area", "cubic"])
def test_downsampling_removes_what_the_small_picture_cannot_hold(method: str) -> None:
    """A checkerboard is gray, not an alias."""
    board = np.indices((32, 32)).sum(axis=0) % 2 * 2.0 - 1
    images = jnp.asarray(np.repeat(board[None, ..., None], 3, axis=-1), jnp.float32)
    small = np.asarray(downsample(images, 4, method))  # type: ignore[arg-type]
    assert np.abs(small[:, 2:-2, 2:-2]).max() < 0.02


@pytest.mark.parametrize(("side", "sigma"), [(3, 0.6), (5, 1.3), (1, 0.5)])
def test_blur_is_scipys_separable_gaussian(side: int, sigma: float) -> None:
    images = pictures(2, 9)
    taps = np.exp(-((np.arange(side) - side // 2) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    expected = images.astype(np.float64)
    for axis in (1, 2):
        expected = scipy.ndimage.convolve1d(expected, taps, axis=axis, mode="mirror")
    found = gaussian_blur(jnp.asarray(images), jnp.full(2, sigma), side)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_each_row_has_its_own_sigma() -> None:
    images = jnp.asarray(np.repeat(pictures(1, 8), 2, axis=0))
    sharp, soft = gaussian_blur(images, jnp.array([0.05, 2.0]), 5)
    np.testing.assert_allclose(sharp, images[0], atol=1e-6)
    assert jnp.std(soft) < 0.5 * jnp.std(images)


def test_blur_reaches_its_share_of_the_pictures() -> None:
    crop = jnp.asarray(pictures(200, 16))
    none = make_low_resolution(KEY, crop, DegradationConfig("none"))
    for share in (0.0, 0.3, 1.0):
        low = make_low_resolution(KEY, crop, DegradationConfig("blur", blur_share=share))
        is_blurred = np.abs(np.asarray(low - none)).max(axis=(1, 2, 3)) > 1e-3
        assert np.mean(is_blurred) == pytest.approx(share, abs=0.09 if share == 0.3 else 0)
    blurred = gaussian_blur(none, jnp.full(200, 0.6), 3)
    np.testing.assert_allclose(low, blurred, atol=1e-6)


@pytest.fixture(scope="module")
def lows() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each kind: 6 pictures twice with one key, and once with the last three changed."""
    crop = pictures(6, 32)
    other = crop.copy()
    other[3:] = -crop[3:]
    found = {}
    for kind in ("none", "blur"):  # bsr has its own tests, and takes long to compile
        make = jax.jit(make_low_resolution, static_argnums=2)
        runs = [make(KEY, jnp.asarray(x), DegradationConfig(kind)) for x in (crop, crop, other)]
        found[kind] = tuple(np.asarray(run) for run in runs)
    return found


@pytest.mark.parametrize("kind", ["none", "blur"])
def test_small_picture(kind: str, lows: dict) -> None:
    first, again, other = lows[kind]
    assert first.shape == (6, 8, 8, 3) and first.dtype == np.float32
    assert np.isfinite(first).all() and np.abs(first).max() <= 1
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(other[:3], first[:3], atol=1e-6)
    assert (np.abs(other[3:] - first[3:]).max(axis=(1, 2, 3)) > 0.1).all()


def test_kinds_differ(lows: dict) -> None:
    assert np.abs(lows["blur"][0] - lows["none"][0]).max() > 0.05


def test_bsr_gets_each_picture_and_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(key: Array, image: Array) -> Array:
        return image[::4, ::4] + jax.random.uniform(key)

    monkeypatch.setattr(low_resolution, "bsr_light", fake)
    crop = pictures(5, 8)
    low = np.asarray(make_low_resolution(KEY, jnp.asarray(crop), DegradationConfig("bsr")))
    added = low - crop[:, ::4, ::4]
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1, :1], added.shape), atol=1e-6)
    assert len(np.unique(added[:, 0, 0, 0])) == 5
    two = make_low_resolution(KEY, jnp.asarray(crop[:2]), DegradationConfig("bsr"))
    np.testing.assert_array_equal(two, low[:2])


def test_bsr_reaches_its_share_of_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_resolution, "bsr_light", lambda key, image: image[::4, ::4] * 0 + 9)
    crop = jnp.asarray(pictures(200, 16))
    small = np.asarray(make_low_resolution(KEY, crop, DegradationConfig("none")))
    for share in (0.0, 0.3, 1.0):
        config = DegradationConfig("bsr", bsr_share=share)
        low = np.asarray(make_low_resolution(KEY, crop, config))
        is_degraded = (low == 9).all(axis=(1, 2, 3))
        assert np.mean(is_degraded) == pytest.approx(share, abs=0.09 if share == 0.3 else 0)
        np.testing.assert_allclose(low[~is_degraded], small[~is_degraded], atol=1e-6)


# -- noise-conditioning augmentation


def test_augmentation_keeps_the_variance_and_ends_in_noise() -> None:
    rng = np.random.default_rng(0)
    clean, noise = (jnp.asarray(rng.standard_normal((3, 64, 64, 3)), jnp.float32) for _ in range(2))
    level = jnp.array([0.0, 0.5, 1.0])
    out = np.asarray(augment(clean, level, noise))
    np.testing.assert_allclose(out.var(axis=(1, 2, 3)), 1, atol=0.04)
    np.testing.assert_array_equal(out[0], clean[0])
    np.testing.assert_allclose(out[1], (clean[1] + noise[1]) / np.sqrt(2), atol=1e-6)
    np.testing.assert_allclose(out[2], noise[2], atol=1e-6)


# -- what is refused


@pytest.mark.parametrize(
    "change",
    [
        {"blur_sigma": (0.0, 1.0)},
        {"blur_sigma": (1.0, 0.5)},
        {"blur_sigma": (1.0,)},
        {"blur_side": 4},
        {"blur_share": 1.5},
        {"bsr_share": -0.1},
    ],
)
def test_config_names_what_is_wrong(change: dict) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        replace(DegradationConfig(), **change)


@pytest.mark.parametrize("kind", KINDS)
def test_sides_must_be_divisible(kind: str) -> None:
    with pytest.raises(UserError, match="divisible by 4"):
        make_low_resolution(KEY, jnp.zeros((1, 18, 16, 3)), DegradationConfig(kind))  # type: ignore[arg-type]


def test_config_becomes_json_and_comes_back() -> None:
    config = DegradationConfig("bsr", blur_sigma=(0.4, 0.9))
    assert from_dict(DegradationConfig, to_dict(config)) == config
