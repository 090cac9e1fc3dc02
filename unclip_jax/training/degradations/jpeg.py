"""What a JPEG file loses, without the file: DCT quantisation and half-size chroma, in JAX.

The entropy coding of a JPEG loses nothing. What does are the steps below, in the order and with the
borders of libjpeg's defaults, which Pillow and OpenCV use:

    RGB → YCbCr (JFIF), chroma to half the side by 2 × 2 means (4:2:0), 8 × 8 DCT,
    round(coefficient / table) (ITU-T T.81, tables K.1 and K.2, scaled by the quality), and back,
    chroma to full size by a triangle filter.

4:2:0 and not 4:4:4, because that is what those libraries write at the qualities used here. A gray
pixel differs from theirs by one level at most, unless a coefficient lies within 1/50 of a half
step, which libjpeg's integer DCT may round to the other side.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMA = np.full((8, 8), 99)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

_TO_YCC = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168735892, -0.331264108, 0.5],
        [0.5, -0.418687589, -0.081312411],
    ]
)
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136286, -0.714136286], [1, 1.772, 0]])
_OFFSET = np.array([0.0, 128.0, 128.0])


def quantization_tables(quality: Array | int) -> Array:
    """The steps of luma and chroma at a quality, as libjpeg scales them: [2, 8, 8] int32.

    Args:
        quality: int32 in [1, 100].
    """
    quality = jnp.asarray(quality)
    scale = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return jnp.clip((np.stack([LUMA, CHROMA]) * scale + 50) // 100, 1, 255)


def jpeg(image_HWC: Array, quality: Array | int, size: Array | None = None) -> Array:
    """A picture after it was written as JPEG and read again.

    Args:
        image_HWC: [H, W, 3] float32 in [0, 1]; rounded to multiples of 1/255 first.
        quality: int32 in [1, 100].
        size: [2] int32, height and width of the picture in the array's upper left corner; None
            is the whole array. What lies outside is not read, and comes back as anything finite.
    Returns:
        [H, W, 3] float32, multiples of 1/255.
    """
    rows, columns = image_HWC.shape[:2]
    height, width = (rows, columns) if size is None else (size[0], size[1])
    levels = jnp.round(255 * jnp.clip(image_HWC, 0, 1))
    ycc = jnp.clip(jnp.round(_mix(levels, _TO_YCC) + _OFFSET), 0, 255)
    luma_table, chroma_table = quantization_tables(quality)

    # A border block is filled with the last pixel; chroma rows are filled after they are halved.
    y, x = jnp.arange(_up(rows, 16)), jnp.arange(_up(columns, 16))
    luma = _take(ycc[..., 0], jnp.minimum(y, height - 1), jnp.minimum(x, width - 1))
    luma = _quantize(luma, luma_table)
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    half_y, half_x = jnp.minimum(y[: len(y) // 2], half_height - 1), x[: len(x) // 2]

    def chroma(plane: Array) -> Array:
        half = _quantize(_halve(plane, half_y, half_x, height, width), chroma_table)
        return _double(half, half_height, half_width)

    decoded = jnp.stack([luma, chroma(ycc[..., 1]), chroma(ycc[..., 2])], axis=-1)
    decoded = decoded[:rows, :columns] - _OFFSET
    return jnp.clip(jnp.round(_mix(decoded, _TO_RGB)), 0, 255) / 255


def dct_matrix() -> np.ndarray:
    """The orthonormal DCT-II of 8 samples, [frequency, sample] float64."""
    frequency, sample = np.arange(8)[:, None], np.arange(8)
    matrix = np.cos(np.pi * (2 * sample + 1) * frequency / 16) / 2
    matrix[0] /= np.sqrt(2)
    return matrix


def _quantize(plane: Array, table: Array) -> Array:
    """[H, W] in [0, 255] with sides divisible by 8, after its DCT coefficients were rounded."""
    dct, precise = dct_matrix().astype(np.float32), jax.lax.Precision.HIGHEST
    blocks = plane.reshape(plane.shape[0] // 8, 8, plane.shape[1] // 8, 8) - 128
    steps = jnp.einsum("ka,iajb,lb->ikjl", dct, blocks, dct, precision=precise)
    steps = steps / table[:, None, :]
    # Halves go away from zero; jnp.round's even numbers would shift flat blocks.
    rounded = jnp.sign(steps) * jnp.floor(jnp.abs(steps) + 0.5) * table[:, None, :]
    blocks = jnp.einsum("ka,ikjl,lb->iajb", dct, rounded, dct, precision=precise)
    return jnp.clip(jnp.round(blocks.reshape(plane.shape) + 128), 0, 255)


def _halve(plane: Array, y: Array, x: Array, height: Array | int, width: Array | int) -> Array:
    """Means of 2 × 2 pixels; (1, 2, 1, 2 ...) / 4 decides on halves, as in libjpeg."""
    rows = [jnp.minimum(2 * y + i, height - 1) for i in (0, 1)]
    columns = [jnp.minimum(2 * x + i, width - 1) for i in (0, 1)]
    total = sum(_take(plane, row, column) for row in rows for column in columns)
    return jnp.floor((total + 1 + x % 2) / 4)


def _double(plane: Array, height: Array | int, width: Array | int) -> Array:
    """Twice the side: 3/4 of the nearest sample and 1/4 of the next, in both directions."""

    def neighbours(length: int, end: Array | int) -> tuple[Array, Array]:
        place = jnp.arange(2 * length)
        near = jnp.clip(place // 2, 0, end - 1)
        return near, jnp.clip(place // 2 + 2 * (place % 2) - 1, 0, end - 1)

    near, far = neighbours(plane.shape[0], height)
    plane = 3 * plane[near] + plane[far]
    near, far = neighbours(plane.shape[1], width)
    return jnp.round((3 * plane[:, near] + plane[:, far]) / 16)


def _take(plane: Array, rows: Array, columns: Array) -> Array:
    return plane[rows][:, columns]


def _mix(image: Array, matrix: np.ndarray) -> Array:
    weights = matrix.astype(np.float32)
    return jnp.einsum("hwc,dc->hwd", image, weights, precision=jax.lax.Precision.HIGHEST)


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
