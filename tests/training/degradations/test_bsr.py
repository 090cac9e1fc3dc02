"""BSR-light: its parts against SciPy and float64, and the whole by its statistics."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.training.degradations import bsr
from unclip_jax.training.degradations.resampling import (
    AREA,
    CUBIC,
    LINEAR,
    halving_matrix,
    mirror,
    resample,
    resize_matrix,
    subsampling_matrix,
)

KEYS = jax.random.split(jax.random.key(7), 3000)
SIZE = 32
matrix_jit = jax.jit(resize_matrix, static_argnums=3)
subsampling_jit = jax.jit(subsampling_matrix, static_argnums=3)
kernel_jit = jax.jit(bsr.gaussian_kernel)
convolve_jit = jax.jit(bsr.convolve)
degrade = jax.jit(jax.vmap(bsr.bsr_light))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def smooth(rows: int, height: int, width: int) -> np.ndarray:
    """Slow waves of random phase in [-1, 1], [rows, height, width, 3] float32."""
    phase = 6 * noise(rows, 2, 1, 1, 3, seed=1)
    y, x = np.mgrid[:height, :width, :1][:2] / max(height, width)
    waves = np.sin(5 * x + phase[:, 0]) * np.cos(4 * y + phase[:, 1])
    return (0.9 * waves).astype(np.float32)


# -- resizing


def weight(method: int, left: float, right: float, i: int) -> float:
    """Of input pixel i for the output interval [left, right), in the input's pixels."""
    if method == AREA:
        return max(min(right, i + 1) - max(left, i), 0.0)
    d = abs((left + right) / 2 - 0.5 - i)
    if method == LINEAR:
        return max(1 - d, 0.0)
    if d < 1:
        return 1.25 * d**3 - 2.25 * d**2 + 1
    return -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3 if d < 2 else 0.0


@pytest.mark.parametrize("method", [LINEAR, CUBIC, AREA])
@pytest.mark.parametrize(("old", "new"), [(13, 5), (20, 20), (7, 11), (1, 4), (20, 1)])
def test_resize_equals_the_sum_over_repeated_borders(method: int, old: int, new: int) -> None:
    length, far = 20, 3
    expected = np.zeros((new, old))
    for o in range(new):
        for i in range(-far, old + far):
            share = weight(method, o * old / new, (o + 1) * old / new, i)
            expected[o, min(max(i, 0), old - 1)] += share
    expected /= expected.sum(axis=1, keepdims=True)
    found = np.asarray(matrix_jit(method, jnp.int32(old), jnp.int32(new), length))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:new, :old], expected, atol=1e-5)
    np.testing.assert_allclose(found[:new, old:], 0, atol=0)


def test_halving_is_matlabs_antialiased_cubic() -> None:
    """A constant and a ramp stay; borders mirror with the last pixel repeated."""
    matrix = halving_matrix(20).astype(np.float64)
    np.testing.assert_allclose(matrix[:10].sum(axis=1), 1, atol=1e-6)
    assert not matrix[10:].any()
    ramp = matrix[:10] @ np.arange(20)
    np.testing.assert_allclose(ramp[2:8], 2 * np.arange(2, 8) + 0.5, atol=1e-5)
    x = noise(20)
    mirrored = np.concatenate([x[::-1], x, x[::-1]])
    wide = np.array([weight_half(d) for d in range(-3, 5)])
    expected = [mirrored[20 + 2 * o - 3 : 20 + 2 * o + 5] @ wide / wide.sum() for o in range(10)]
    np.testing.assert_allclose(matrix[:10] @ x, expected, atol=1e-6)


def weight_half(tap: int) -> float:
    d = abs(tap - 0.5) / 2
    if d < 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2


@pytest.mark.parametrize(("sigma", "step", "size"), [(0.3, 4, 32), (2.4, 4, 24), (1.1, 2, 16)])
def test_subsampling_is_scipys_blur_and_a_stride(sigma: float, step: int, size: int) -> None:
    tap = np.arange(25)
    gaussian = np.exp(-((tap - 12) ** 2) / (2 * sigma**2))
    moved = np.interp(np.clip(tap + (step - 1) / 2, 0, 24), tap, gaussian)
    kernel = np.outer(moved, moved) / moved.sum() ** 2
    picture = noise(size, size)
    expected = scipy.ndimage.convolve(picture, kernel, mode="mirror")[::step, ::step]
    matrix = subsampling_jit(jnp.float32(sigma), jnp.int32(step), jnp.int32(size), 32)
    array = np.zeros((32, 32, 1), np.float32)
    array[:size, :size, 0] = picture
    out = np.asarray(resample(jnp.asarray(array), matrix, matrix))
    np.testing.assert_allclose(out[: size // step, : size // step, 0], expected, atol=2e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_mirror_folds_as_numpys_reflect(size: int) -> None:
    expected = np.pad(np.arange(size), 9, mode="reflect")
    found = mirror(jnp.arange(-9, size + 9), size)
    np.testing.assert_array_equal(found, expected)


# -- blur


@pytest.mark.parametrize("side", [5, 6, 13, 14])
def test_blur_is_scipys_convolution(side: int) -> None:
    """In a part of the array, with a rotated Gaussian whose density SciPy's convention lays out."""
    variances, angle, height, width = (1.7, 0.3), 0.6, 20, 17
    place = np.arange(side) - (side - 1) / 2
    y, x = place[:, None], place
    direction = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([math.sin(angle), -math.cos(angle)])
    covariance = variances[0] * np.outer(direction, direction)
    covariance += variances[1] * np.outer(across, across)
    inverse = np.linalg.inv(covariance)
    form = inverse[0, 0] * x * x + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y * y
    kernel = np.exp(-form / 2) / np.exp(-form / 2).sum()
    picture = noise(height, width, 3)
    expected = scipy.ndimage.convolve(picture, kernel[..., None], mode="mirror")

    found = kernel_jit(jnp.array(variances), jnp.float32(angle), jnp.int32(side))
    array = noise(24, 24, 3, seed=5).astype(np.float32)
    array[:height, :width] = picture
    out = np.asarray(convolve_jit(jnp.asarray(array), found, jnp.array([height, width])))
    assert float(jnp.sum(found)) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(out[:height, :width], expected, atol=2e-6)


@pytest.mark.parametrize("side", [5, 6])
def test_blur_of_no_width_is_still_a_mean(side: int) -> None:
    kernel = kernel_jit(jnp.zeros(2), jnp.float32(1), jnp.int32(side))
    largest = np.sort(np.asarray(kernel).ravel())[::-1]
    expected = [1.0, 0, 0, 0] if side == 5 else [0.25] * 4
    # An exponent of 250 is rounded by 2e-5 in float32.
    np.testing.assert_allclose(largest[:4], expected, atol=3e-5)


# -- the single steps


def test_order_is_random_and_fit_comes_after_shrink() -> None:
    orders = np.asarray(jax.vmap(bsr.random_order)(KEYS))
    assert (np.sort(orders, axis=1) == np.arange(5)).all()
    place = np.argsort(orders, axis=1)
    assert (place[:, bsr.SHRINK] < place[:, bsr.FIT]).all()
    assert len(np.unique(orders, axis=0)) == math.factorial(5) // 2
    for free in (0, 3, 4):  # blur, noise and JPEG stand anywhere
        np.testing.assert_allclose(np.bincount(place[:, free]) / len(KEYS), 0.2, atol=0.03)


def run(step: Any, picture: np.ndarray, factor: int, size: tuple[int, int] = (SIZE, SIZE)) -> Any:
    def one(key: Array) -> Any:
        state = (jnp.asarray(picture, jnp.float32), jnp.array(size, jnp.int32))
        return step(key, jnp.int32(factor), state)

    return jax.jit(jax.vmap(one))


def test_noise_has_the_papers_levels() -> None:
    """Gray in 40 % of the pictures, by channel in 40 %, correlated in 20 %; never over 2/255."""
    picture = np.full((SIZE, SIZE, 3), 0.5)
    out, _ = run(bsr.noise, picture, 4)(KEYS[:600])
    drawn = (np.asarray(out) - 0.5) * 255
    deviation = drawn.std(axis=(1, 2))
    correlation = np.array([np.corrcoef(row.reshape(-1, 3).T)[0, 1] for row in drawn])
    is_gray = correlation > 0.9999
    is_plain = np.abs(correlation) < 0.12
    assert np.mean(is_gray) == pytest.approx(0.4, abs=0.06)
    assert np.mean(is_plain) == pytest.approx(0.42, abs=0.08)  # some of the correlated ones too
    levels = deviation[is_gray][:, 0]
    assert np.all((np.abs(levels - 1) < 0.1) | (np.abs(levels - 2) < 0.2))
    assert np.mean(levels > 1.5) == pytest.approx(0.5, abs=0.1)
    assert deviation.min() > 0.1 and deviation.max() < 2.5


def test_shrink_draws_sizes_down_to_an_eighth() -> None:
    picture = noise(SIZE, SIZE, 3)
    step = run(bsr.shrink, picture, 4)
    sizes = np.asarray(jax.jit(lambda keys: step(keys)[1])(KEYS))
    sides = sizes[:, 0]
    assert (sizes[:, 1] == sides).all()
    assert (sides.min(), sides.max()) == (4, 31)
    # 1 / U(1, 8): the side is n with 32 (1/n - 1/(n + 1)) / 7; a fifth is subsampled to 8.
    for side in (4, 5, 8, 16):
        share = 0.8 * 32 * (1 / side - 1 / (side + 1)) / 7 + 0.2 * (side == 8)
        deviation = math.sqrt(share * (1 - share) / len(KEYS))
        assert np.mean(sides == side) == pytest.approx(share, abs=3 * deviation)
    out, halved = run(bsr.shrink, picture, 2, (16, 16))(KEYS[:200])
    assert np.asarray(halved).min() == 4 and np.asarray(halved).max() <= 16
    assert np.asarray(out).min() >= 0 and np.asarray(out).max() <= 1


def test_halving_happens_to_a_quarter_of_the_pictures() -> None:
    picture = jnp.asarray(smooth(1, SIZE, SIZE)[0] / 2 + 0.5)
    (out, size), factor = jax.jit(jax.vmap(lambda key: bsr.maybe_halve(key, picture)))(KEYS[:800])
    is_halved = np.asarray(factor) == 2
    assert np.mean(is_halved) == pytest.approx(0.25, abs=0.05)
    assert (np.asarray(size)[is_halved] == SIZE // 2).all()
    assert (np.asarray(size)[~is_halved] == SIZE).all()
    np.testing.assert_array_equal(np.asarray(out)[~is_halved][0], picture)
    area = np.asarray(picture).reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean(axis=(1, 3))
    half = np.asarray(out)[is_halved][:, : SIZE // 2, : SIZE // 2]
    np.testing.assert_allclose((half - area)[:, 2:-2, 2:-2], 0, atol=0.02)


# -- the whole


def test_result_is_the_small_picture_with_small_errors() -> None:
    images = smooth(24, 64, 48)
    keys = KEYS[:24]
    out = np.asarray(degrade(keys, images))
    assert out.shape == (24, 16, 12, 3) and out.dtype == np.float32
    assert np.isfinite(out).all() and np.abs(out).max() <= 1
    levels = (out + 1) * 127.5
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    small = images.reshape(24, 16, 4, 12, 4, 3).mean(axis=(2, 4))
    error = np.sqrt(np.mean((out - small) ** 2, axis=(1, 2, 3)))
    # Light, but not nothing: JPEG alone leaves 1/255, a shrink to an eighth up to a tenth.
    assert error.min() > 0.004 and error.max() < 0.2
    assert np.std(error) > 0.005


def test_degradation_depends_on_the_key_alone_and_not_on_other_rows() -> None:
    images = smooth(24, 64, 48)
    first = np.asarray(degrade(KEYS[:24], images))
    np.testing.assert_array_equal(first, degrade(KEYS[:24], images))
    others = images.copy()
    others[1:] = -images[1:]
    np.testing.assert_allclose(degrade(KEYS[:24], others)[0], first[0], atol=1e-6)
    different = np.asarray(degrade(KEYS[24:48], images))
    assert (np.abs(different - first).max(axis=(1, 2, 3)) > 1e-3).all()


def test_sides_must_be_divisible() -> None:
    with pytest.raises(UserError, match="divisible by 4"):
        bsr.bsr_light(jax.random.key(0), jnp.zeros((18, 16, 3)))
