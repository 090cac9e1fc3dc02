"""BSR-light: blur, two resizes, noise and JPEG in random order, the corruption of 256 → 1024.

Ramesh et al. 2022, section 2.1, train the second upsampler on small pictures made by "a more
diverse BSR degradation" (Rombach et al. 2021, "BSR-light"; Zhang et al. 2021). With sf = 4 and
pictures in [0, 1]:

    with p 1/4: halve (p 1/2 by a random filter, else MATLAB's antialiased cubic), then sf = 2
    in random order, but `fit` after `shrink`:
        blur     p 1/2 anisotropic Gaussian, else isotropic
        shrink   p 0.8 by 1 / U(1, 2 sf) with a random filter, else blur and keep each sf-th pixel
        fit      to the final size, a quarter of the first, with a random filter
        noise    deviation 1/255 or 2/255: 40 % by channel, 40 % gray, 20 % correlated channels
        jpeg     p 0.9, quality 80 to 95
    and JPEG once more.

The second blur and the camera of the full BSR are not in BSR-light. The filters are linear, cubic
and area as in OpenCV. A picture becomes any size between two resizes, see `resampling.py`.
Two things differ from the NumPy original: its Gaussians of very small width are all zero where the
kernel's side is even, which makes the picture black, and here they stay normalised; its covariance
of width 0 is an error.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.upsampler import FACTOR
from unclip_jax.training.degradations.jpeg import jpeg
from unclip_jax.training.degradations.resampling import (
    halving_matrix,
    mirror,
    resample,
    resize_matrix,
    subsampling_matrix,
)

REACH = 7
"""Pixels that the largest blur kernel, 14 × 14, reaches to one side."""

State = tuple[Array, Array]
"""A picture [H, W, 3] in [0, 1] and its size [2] int32, height and width in use."""


def bsr_light(key: Array, image_HWC: Array) -> Array:
    """A picture of a quarter of the side, degraded by the module's recipe.

    Args:
        key: typed key.
        image_HWC: [H, W, 3] float32 in [-1, 1], sides divisible by 4.
    Returns:
        [H/4, W/4, 3] float32 in [-1, 1], of 256 levels.
    Raises:
        UserError: sides that are not divisible by 4.
    """
    height, width, _ = image_HWC.shape
    if height % FACTOR or width % FACTOR:
        raise UserError(
            f"the picture is {height} × {width}: BSR degradation needs sides divisible by {FACTOR}"
        )
    halve_key, order_key, steps_key, quality_key = jax.random.split(key, 4)
    picture = jnp.clip((image_HWC + 1) / 2, 0, 1)
    state, factor = maybe_halve(halve_key, picture)

    def step(state: State, inputs: tuple[Array, Array]) -> tuple[State, None]:
        operation, key = inputs
        return jax.lax.switch(operation, OPERATIONS, key, factor, state), None

    keys = jax.random.split(steps_key, len(OPERATIONS))
    (picture, size), _ = jax.lax.scan(step, state, (random_order(order_key), keys))
    picture = jpeg(picture, draw_quality(quality_key), size)
    return 2 * picture[: height // FACTOR, : width // FACTOR] - 1


def maybe_halve(key: Array, picture: Array) -> tuple[State, Array]:
    """The state after the first line of the recipe, and sf, int32: 4, or 2 if it was halved."""
    share_key, filter_key, kind_key = jax.random.split(key, 3)
    height, width, _ = picture.shape
    size = jnp.array([height, width], jnp.int32)
    filtered, _ = resize(filter_key, (picture, size), size // 2)
    smooth = resample(
        picture, jnp.asarray(halving_matrix(height)), jnp.asarray(halving_matrix(width))
    )
    half = jnp.where(jax.random.bernoulli(kind_key), filtered, jnp.clip(smooth, 0, 1))
    is_halved = jax.random.bernoulli(share_key, 0.25)
    state = (jnp.where(is_halved, half, picture), jnp.where(is_halved, size // 2, size))
    return state, jnp.where(is_halved, 2, 4)


def random_order(key: Array) -> Array:
    """[5] int32, a uniform order of OPERATIONS in which `shrink` and `fit` swap if they must."""
    order = jax.random.permutation(key, len(OPERATIONS))
    is_resize = (order == SHRINK) | (order == FIT)
    return jnp.where(is_resize, SHRINK - 1 + jnp.cumsum(is_resize), order)


def blur(key: Array, factor: Array, state: State) -> State:
    """Convolution with a random Gaussian, mirrored at the borders."""
    kind_key, width_key, angle_key, long_key, short_key = jax.random.split(key, 5)
    is_anisotropic = jax.random.bernoulli(kind_key)
    draws = jax.random.uniform(width_key, (2,))
    variances = (4 + factor) / 4 * draws
    deviation = (2 + 0.2 * factor) / 4 * draws[0]
    variances = jnp.where(is_anisotropic, variances, deviation**2)
    side = jnp.where(
        is_anisotropic,
        jax.random.randint(long_key, (), 5, 15),
        jax.random.randint(short_key, (), 5, 8),
    )
    kernel = gaussian_kernel(variances, jnp.pi * jax.random.uniform(angle_key), side)
    picture, size = state
    return convolve(picture, kernel, size), size


def shrink(key: Array, factor: Array, state: State) -> State:
    """Resize to 1 / U(1, 2 sf) of the side, or blur and keep every sf-th pixel."""
    kind_key, scale_key, filter_key, sigma_key = jax.random.split(key, 4)
    picture, size = state
    scale = jax.random.uniform(scale_key, minval=1.0, maxval=2.0 * factor)
    smaller = jnp.maximum(jnp.floor(size / scale).astype(jnp.int32), 1)
    resized, smaller = resize(filter_key, state, smaller)

    sigma = jax.random.uniform(sigma_key, minval=0.1, maxval=0.6 * factor)
    rows, columns = (
        subsampling_matrix(sigma, factor, size[axis], picture.shape[axis]) for axis in (0, 1)
    )
    sampled = jnp.clip(resample(picture, rows, columns), 0, 1)
    is_resized = jax.random.bernoulli(kind_key, 0.8)
    picture = jnp.where(is_resized, resized, sampled)
    return picture, jnp.where(is_resized, smaller, size // factor)


def fit(key: Array, factor: Array, state: State) -> State:
    """Resize to a quarter of the first side."""
    height, width, _ = state[0].shape
    return resize(key, state, jnp.array([height // FACTOR, width // FACTOR], jnp.int32))


def noise(key: Array, factor: Array, state: State) -> State:
    """Gaussian noise of one of three kinds."""
    kind_key, level_key, noise_key, values_key, vectors_key = jax.random.split(key, 5)
    picture, size = state
    kind = jax.random.uniform(kind_key)
    level = jax.random.randint(level_key, (), 1, 3) / 255
    z = jax.random.normal(noise_key, picture.shape)
    # Gray by 0.4, channels from 0.6, correlated between; |U^T D U| has eigenvalues of any sign,
    # and NumPy draws from such a matrix by their magnitudes.
    vectors, _, _ = jnp.linalg.svd(jax.random.uniform(vectors_key, (3, 3)))
    covariance = jnp.abs(vectors.T @ (jax.random.uniform(values_key, (3, 1)) * vectors))
    values, vectors = jnp.linalg.eigh(covariance)
    root = 2 / 255 * jnp.sqrt(jnp.abs(values)) * vectors
    correlated = jnp.einsum("hwc,dc->hwd", z, root, precision=jax.lax.Precision.HIGHEST)
    plain = level * jnp.where(kind < 0.4, z[..., :1], z)
    drawn = jnp.where((kind >= 0.4) & (kind <= 0.6), correlated, plain)
    return jnp.clip(picture + drawn, 0, 1), size


def compress(key: Array, factor: Array, state: State) -> State:
    """JPEG with p 0.9."""
    share_key, quality_key = jax.random.split(key)
    picture, size = state
    written = jpeg(picture, draw_quality(quality_key), size)
    return jnp.where(jax.random.bernoulli(share_key, 0.9), written, picture), size


OPERATIONS = (blur, shrink, fit, noise, compress)
SHRINK, FIT = 1, 2


def resize(key: Array, state: State, size: Array) -> State:
    """To `size` [2] int32 with a random filter."""
    picture, old = state
    method = jax.random.randint(key, (), 0, 3)
    rows, columns = (
        resize_matrix(method, old[axis], size[axis], picture.shape[axis]) for axis in (0, 1)
    )
    return jnp.clip(resample(picture, rows, columns), 0, 1), size


def gaussian_kernel(variances: Array, angle: Array, side: Array) -> Array:
    """A Gaussian on side × side taps in a fixed array, which sums to 1.

    An even side has its centre half a pixel down and to the right, as in SciPy's convolution.

    Args:
        variances: [2] float32, along the axis at `angle` from x to y, and across.
        side: int32, at most 2 REACH.
    Returns:
        [2 REACH + 1, 2 REACH + 1] float32, weights of the picture at offsets -REACH to REACH.
    """
    offset = jnp.arange(-REACH, REACH + 1) - jnp.where(side % 2, 0.0, 0.5)
    y, x = offset[:, None], offset
    along = jnp.cos(angle) * x + jnp.sin(angle) * y
    across = jnp.sin(angle) * x - jnp.cos(angle) * y
    variances = jnp.maximum(variances, 1e-3)  # below, only the nearest taps count
    exponent = -(along**2 / variances[0] + across**2 / variances[1]) / 2
    is_inside = (jnp.abs(y) <= (side - 1) / 2) & (jnp.abs(x) <= (side - 1) / 2)
    # A softmax: a narrow Gaussian on an even side would be 0/0.
    weights = jax.nn.softmax(jnp.where(is_inside, exponent, -jnp.inf).reshape(-1))
    return weights.reshape(exponent.shape)


def convolve(picture: Array, kernel: Array, size: Array) -> Array:
    """Each channel with a kernel of `gaussian_kernel`; borders mirror without repeating a pixel."""
    rows, columns = (
        mirror(jnp.arange(-REACH, picture.shape[axis] + REACH), size[axis]) for axis in (0, 1)
    )
    channels = jnp.moveaxis(picture[rows][:, columns], -1, 0)[..., None]
    out = jax.lax.conv_general_dilated(
        channels,
        kernel[:, :, None, None],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.moveaxis(out[..., 0], 0, -1)


def draw_quality(key: Array) -> Array:
    """80 to 95, int32."""
    return jax.random.randint(key, (), 80, 96)
