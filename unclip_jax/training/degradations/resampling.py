"""Resizing as matrices, for pictures whose size is known only when the program runs.

A program for an accelerator has fixed shapes, and a degradation draws a new size for each picture.
So a picture lies in the upper left corner of a fixed array, its height and width are numbers beside
it, and every resize is out = A picture B^T with matrices A and B that are made from those numbers.
The three filters are OpenCV's, none of which smooths before it drops pixels, except area.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

LINEAR, CUBIC, AREA = 0, 1, 2


def resize_matrix(method: Array | int, old: Array, new: Array, length: int) -> Array:
    """One side's resize from `old` to `new` pixels; borders repeat the last pixel.

    Args:
        method: int32, LINEAR, CUBIC (Keys with a = -3/4) or AREA (mean over the covered interval).
        old, new: int32 scalars, at most `length`.
    Returns:
        [length, length] float32, rows are the new pixels. Rows sum to 1 up to row `new`; nothing
        reads the columns from `old` on.
    """
    scale = old.astype(jnp.float32) / new.astype(jnp.float32)
    place = jnp.arange(length, dtype=jnp.float32)
    centre = (place + 0.5) * scale - 0.5
    below = jnp.floor(centre)
    part = centre - below

    def taps(offsets: list[int], weights: list[Array]) -> Array:
        index = below[:, None].astype(jnp.int32) + jnp.asarray(offsets)
        return gather_matrix(jnp.clip(index, 0, old - 1), jnp.stack(weights, axis=1), length)

    linear = taps([0, 1], [1 - part, part])
    distances = [1 + part, part, 1 - part, 2 - part]
    cubic = taps([-1, 0, 1, 2], [_keys(distance, -0.75) for distance in distances])

    left, right = place[:, None] * scale, (place[:, None] + 1) * scale
    covered = jnp.maximum(jnp.minimum(right, place + 1) - jnp.maximum(left, place), 0)
    covered = jnp.where(place < old, covered, 0)
    # Rows from `new` on cover nothing; a 0/0 there would reach the picture as 0 · nan.
    area = covered / jnp.maximum(jnp.sum(covered, axis=1, keepdims=True), 1e-6)
    return jnp.where(method == LINEAR, linear, jnp.where(method == CUBIC, cubic, area))


def halving_matrix(length: int) -> np.ndarray:
    """MATLAB's `imresize` by 1/2: cubic with a = -1/2 that is widened to 8 taps; borders mirror.

    Returns:
        [length, length] float32; rows from length/2 on are zero.
    """
    matrix = np.zeros((length, length), np.float32)
    offsets = np.arange(-3, 5)
    weights = _keys(np.abs(offsets - 0.5) / 2, -0.5)
    for row in range(length // 2):
        index = (2 * row + offsets) % (2 * length)
        index = np.where(index < length, index, 2 * length - 1 - index)
        np.add.at(matrix[row], index, weights / weights.sum())
    return matrix


def subsampling_matrix(sigma: Array, step: Array, size: Array, length: int) -> Array:
    """Blur by 25 Gaussian taps and keep every `step`-th pixel, centred on the pixels it replaces.

    The kernel is moved by (step - 1) / 2 pixels with linear interpolation, and mirrors at borders.

    Args:
        sigma: float32 scalar, deviation in pixels.
        step: int32 scalar.
        size: int32 scalar, at most `length`.
    Returns:
        [length, length] float32; rows from size/step on are of no use.
    """
    tap = jnp.arange(25, dtype=jnp.float32)
    gaussian = jnp.exp(-((tap - 12) ** 2) / (2 * sigma**2))
    kernel = jnp.interp(jnp.clip(tap + (step - 1) / 2, 0, 24), tap, gaussian)
    kernel = kernel / jnp.sum(kernel)
    index = jnp.arange(length)[:, None] * step - (jnp.arange(25) - 12)
    return gather_matrix(mirror(index, size), jnp.broadcast_to(kernel, index.shape), length)


def resample(picture_HWC: Array, rows: Array, columns: Array) -> Array:
    """rows · picture · columns^T: [H, W, C] with [H, H] and [W, W]."""
    precise = jax.lax.Precision.HIGHEST
    picture = jnp.einsum("oi,ijc->ojc", rows, picture_HWC, precision=precise)
    return jnp.einsum("pj,ojc->opc", columns, picture, precision=precise)


def mirror(index: Array, size: Array | int) -> Array:
    """Indices folded into [0, size) at the first and the last pixel, which are not repeated."""
    period = jnp.maximum(2 * (size - 1), 1)
    index = index % period
    return jnp.where(index < size, index, period - index)


def gather_matrix(index: Array, weights: Array, length: int) -> Array:
    """The matrix whose row r adds up weights[r, k] · x[index[r, k]]: two [R, K] to [R, length]."""
    is_column = index[..., None] == jnp.arange(length)
    return jnp.sum(jnp.where(is_column, weights[..., None], 0.0), axis=1)


def _keys(distance: Any, a: float) -> Any:
    """Keys' cubic at distances in [0, 2], of numpy or JAX."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return (distance <= 1) * near + (distance > 1) * far
