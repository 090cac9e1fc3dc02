"""JPEG in JAX against Pillow's files and against float64."""

from __future__ import annotations

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from PIL import Image

from unclip_jax.training.degradations.jpeg import dct_matrix, jpeg, quantization_tables

jpeg_jit = jax.jit(jpeg)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, an edge and some noise, uint8."""
    y, x = np.mgrid[:height, :width] / 16
    waves = [np.sin(x + y), np.cos(2 * x - y), np.sin(3 * y)]
    values = 128 + 90 * np.stack(waves, axis=-1)
    values[height // 3 :, width // 2 :, 0] = 250
    values += 6 * np.random.default_rng(seed).standard_normal(values.shape)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def written(image: np.ndarray, quality: int) -> tuple[np.ndarray, Image.Image]:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    read = Image.open(out)
    return np.asarray(read), read


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("quality", [1, 30, 49, 50, 80, 95, 100])
def test_tables_are_those_that_pillow_writes(quality: int) -> None:
    _, file = written(picture(16, 16), quality)
    tables = np.asarray(quantization_tables(quality))
    for found, expected in zip(tables, file.quantization.values(), strict=True):  # type: ignore[attr-defined]
        np.testing.assert_array_equal(found, np.reshape(expected, (8, 8)))


@pytest.mark.parametrize("shape", [(48, 32), (41, 27)])
@pytest.mark.parametrize("quality", [40, 80, 95])
def test_pixels_are_pillows_but_for_roundings(shape: tuple[int, int], quality: int) -> None:
    image = picture(*shape)
    expected, _ = written(image, quality)
    found = 255 * np.asarray(jpeg_jit(image.astype(np.float32) / 255, quality))
    assert psnr(found, expected) > 45
    assert psnr(found, expected) > psnr(image, expected) + 8


def test_gray_is_pillows_to_one_level_unless_a_coefficient_lies_at_a_half() -> None:
    """libjpeg's DCT is one of integers: near halves it may round to the other side."""

    def blocks(plane: np.ndarray) -> np.ndarray:
        return plane.astype(np.float64).reshape(8, 8, 8, 8).swapaxes(1, 2)

    gray = np.repeat(picture(64, 64)[..., :1], 3, axis=-1)
    expected, file = written(gray, 80)
    found = 255 * np.asarray(jpeg_jit(gray.astype(np.float32) / 255, 80))
    error = np.abs(blocks(found[..., 0]) - blocks(expected[..., 0])).max(axis=(2, 3))

    table = np.reshape(file.quantization[0], (8, 8))  # type: ignore[attr-defined]
    dct: Any = scipy.fft.dctn(blocks(gray[..., 0]) - 128, axes=(2, 3), norm="ortho")
    is_sure = (np.abs((dct / table) % 1 - 0.5) > 0.02).all(axis=(2, 3))
    assert is_sure.sum() > 10
    assert error[is_sure].max() < 1.001


def test_part_of_an_array_is_the_picture_alone() -> None:
    """Whatever lies outside of `size` has no influence."""
    image = picture(41, 27).astype(np.float32) / 255
    alone = np.asarray(jpeg_jit(image, 85))
    array = np.random.default_rng(1).random((64, 48, 3), np.float32)
    array[:41, :27] = image
    inside = np.asarray(jpeg_jit(array, 85, jnp.array([41, 27])))
    np.testing.assert_array_equal(inside[:41, :27], alone)


def test_dct_is_orthonormal_and_scipys() -> None:
    matrix = dct_matrix()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-12)
    block = np.random.default_rng(0).standard_normal((8, 8))
    expected: Any = scipy.fft.dctn(block, norm="ortho")
    np.testing.assert_allclose(matrix @ block @ matrix.T, expected, atol=1e-12)


def test_gray_blocks_are_quantised_as_in_float64() -> None:
    """A gray picture has flat chroma, so that luma alone is seen: one block in numpy's float64."""
    block = np.round(128 + 60 * np.random.default_rng(2).standard_normal((8, 8))).clip(0, 255)
    table = np.asarray(quantization_tables(60))[0]
    dct: Any = scipy.fft.dctn(block - 128, norm="ortho")
    steps = dct / table
    rounded = np.sign(steps) * np.floor(np.abs(steps) + 0.5)
    decoded: Any = scipy.fft.idctn(rounded * table, norm="ortho")
    expected = np.round(decoded + 128).clip(0, 255)
    image = np.repeat(block[..., None], 3, axis=-1).astype(np.float32) / 255
    found = 255 * np.asarray(jpeg_jit(image, 60))
    np.testing.assert_allclose(found, np.repeat(expected[..., None], 3, axis=-1), atol=1e-3)


def test_result_is_in_range_and_of_255_levels() -> None:
    noise = np.random.default_rng(3).random((32, 32, 3)).astype(np.float32)
    out = np.asarray(jpeg_jit(noise, 30))
    assert out.min() >= 0 and out.max() <= 1
    np.testing.assert_allclose(255 * out, np.round(255 * out), atol=1e-4)
