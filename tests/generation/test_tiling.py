"""Tiles: windows that sum to one, exact results where they are possible, no seams elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import Array

from tests.models.networks import draw, random_params
from unclip_jax.diffusion.samplers import SamplerConfig, sample, sampling_schedule
from unclip_jax.diffusion.schedule import make_schedule
from unclip_jax.errors import UserError
from unclip_jax.generation.tiling import TilingConfig, tile_starts, tile_windows, tiled_denoise
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import Upsampler, UpsamplerConfig, resize_low_resolution

T = np.array([3, 500], np.int32)
MODES = ("crop", "blend")


class Convolutions(nn.Module):
    """Three 3 × 3 convolutions without a norm, on x, the time and a picture: R is 3.

    With `halves`, the middle one works at half the resolution and R is 5: 1 + 2 + 1, and 1 for
    where in its square of 2 × 2 a pixel lies.
    """

    halves: bool = False

    @nn.compact
    def __call__(self, x: Array, t: Array, picture: Array) -> Array:
        h = jnp.concatenate([x, picture], axis=-1)
        h = jnp.tanh(nn.Conv(5, (3, 3), padding=1)(h) + t[:, None, None, None] / 1000)
        if self.halves:
            h = nn.avg_pool(h, (2, 2), (2, 2))
        h = jnp.tanh(nn.Conv(5, (3, 3), padding=1)(h))
        if self.halves:
            h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
        return nn.Conv(6, (3, 3), padding=1)(h)


def make_network(module: nn.Module, *inputs: Any) -> Callable[..., Array]:
    params = random_params(module, *inputs)
    return lambda *args: module.apply({"params": params}, *args)  # type: ignore[return-value]


# -- windows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("side", "tile", "overlap"),
    [(64, 16, 4), (64, 16, 0), (65, 16, 5), (50, 16, 12), (16, 16, 4), (9, 16, 4), (17, 16, 15)],
)
def test_windows_sum_to_one(side: int, tile: int, overlap: int, mode: str) -> None:
    config = TilingConfig(tile, overlap, mode)  # type: ignore[arg-type]
    starts, windows = tile_starts(side, config), tile_windows(side, config)
    assert starts[0] == 0 and starts[-1] + min(tile, side) == side
    assert (np.diff(starts) > 0).all() and (np.diff(starts) <= tile - overlap).all()
    total = np.zeros(side)
    for start, window in zip(starts, windows, strict=True):
        assert (window >= 0).all()
        total[start : start + len(window)] += window
    np.testing.assert_allclose(total, 1, atol=1e-12)


def test_blending_windows_are_smooth_and_end_at_zero() -> None:
    _, inner, _ = tile_windows(80, TilingConfig(32, 8, "blend"))
    assert inner[[0, -1]].max() < 0.01
    assert np.abs(np.diff(inner)).max() < 1.05 * np.pi / (2 * 8)
    np.testing.assert_allclose(inner[8:-8], 1)


def test_cropping_leaves_half_the_overlap_at_every_inner_edge() -> None:
    for overlap in (6, 7):
        _, inner, _ = tile_windows(80 - 2 * overlap + 16, TilingConfig(32, overlap, "crop"))
        used = np.flatnonzero(inner)
        assert used[0] >= overlap // 2 and 31 - used[-1] >= overlap // 2


# -- exact results


@pytest.mark.parametrize("mode", MODES)
def test_network_of_single_pixels_is_exact_in_both_modes(mode: str) -> None:
    x, picture = jnp.asarray(draw(1, 2, 40, 23, 3)), jnp.asarray(draw(2, 2, 40, 23, 1))

    def denoise(x: Array, t: Array, picture: Array) -> Array:
        return jnp.concatenate([x * picture, x + t[:, None, None, None]], axis=-1)

    run = tiled_denoise(denoise, TilingConfig(16, 4, mode), picture)  # type: ignore[arg-type]
    t = jnp.asarray(T)
    out = jax.jit(run)(x, t)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, denoise(x, t, picture), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("halves", "reach"), [(False, 3), (True, 5)])
def test_convolutions_are_exact_with_twice_their_reach(halves: bool, reach: int) -> None:
    """A side that is no multiple of the stride, a picture beside x; less overlap is not exact."""
    inputs = (draw(1, 2, 52, 40, 3), T, draw(2, 2, 52, 40, 3))
    network = make_network(Convolutions(halves), *inputs)
    expected = np.asarray(network(*inputs))

    def error(overlap: int) -> float:
        config = TilingConfig(24, overlap, "crop")
        out = jax.jit(tiled_denoise(network, config, jnp.asarray(inputs[2])))(*inputs[:2])
        return float(np.abs(np.asarray(out) - expected).max())

    assert error(2 * reach) < 1e-5
    assert error(reach - reach % 2) > 1e-2


def test_sampling_in_tiles_draws_the_same_pictures() -> None:
    """All of x_T, the noise of each step and the chain are those of the whole picture."""
    shape = (2, 32, 20, 3)
    picture = jnp.asarray(draw(2, *shape))
    network = make_network(Convolutions(), draw(1, *shape), T, picture)
    config = SamplerConfig(num_steps=4)
    schedule = sampling_schedule(make_schedule("cosine", 1000), config)

    @jax.jit
    def run(keys: Array) -> tuple[Array, Array]:
        tiled = tiled_denoise(network, TilingConfig(12, 6, "crop"), picture)
        drawn = [
            sample(
                denoise,
                schedule,
                shape,
                config=config,
                prediction="x0",
                variance="learned_range",
                keys=keys,
            )
            for denoise in (tiled, lambda x, t: network(x, t, picture))
        ]
        return drawn[0], drawn[1]

    tiled, whole = run(jax.random.split(jax.random.key(0), 2))
    assert float(jnp.std(whole)) > 0.1
    np.testing.assert_allclose(tiled, whole, atol=1e-4)


# -- seams


SIDE, BATCH = 64, 8
UPSAMPLER = UpsamplerConfig(
    UNetConfig(
        image_size=SIDE,
        in_channels=6,
        out_channels=3,
        channels=8,
        channel_mult=(1, 2),
        depth=(1,),
        attention_resolutions=(),
        has_middle_attention=False,
        groups=4,
    ),
    resize="cubic",
)


def seam_ratio(images: np.ndarray, borders: list[int]) -> float:
    """Mean step from one pixel to the next across the tiles' borders, over that elsewhere."""
    ratios = []
    for axis in (1, 2):
        steps = np.abs(np.diff(images, axis=axis))
        along = steps.mean(axis=tuple({0, 1, 2, 3} - {axis}))
        is_border = np.isin(np.arange(1, SIDE), borders)
        ratios.append(along[is_border].mean() / along[~is_border].mean())
    return float(np.mean(ratios))


@pytest.fixture(scope="module")
def upsampled() -> Callable[[TilingConfig | None], np.ndarray]:
    """Pictures drawn in 4 steps; details come from a U-Net with GroupNorm and random weights."""
    module = Upsampler(UPSAMPLER)
    small = np.tanh(draw(5, BATCH, SIDE // 4, SIDE // 4, 3))
    small[:, :, SIDE // 8 :] *= 0.2  # flat on the right: the tiles' statistics differ
    resized = resize_low_resolution(jnp.asarray(small), (SIDE, SIDE), "cubic")
    shape = (BATCH, SIDE, SIDE, 3)
    params = random_params(module, draw(1, *shape), np.zeros(BATCH, np.int32), small)
    config = SamplerConfig("ddim", num_steps=4)
    schedule = sampling_schedule(make_schedule("cosine", 1000), config)
    keys = jax.random.split(jax.random.key(1), BATCH)

    def network(x: Array, t: Array, tile: Array) -> Array:
        details: Any = module.apply({"params": params}, x, t, tile, method=Upsampler.denoise)
        return tile + 0.1 * details

    def run(tiling: TilingConfig | None) -> np.ndarray:
        whole = TilingConfig(SIDE, 0, "crop")
        denoise = tiled_denoise(network, tiling or whole, resized)
        draw_all = jax.jit(
            lambda keys: sample(denoise, schedule, shape, config=config, prediction="x0", keys=keys)
        )
        return np.asarray(draw_all(keys))

    return run


def test_blended_tiles_show_no_seams(upsampled: Callable) -> None:
    """The norms see tiles, so the tiles' details differ; at the borders no steps are larger.

    They are a little smaller, as a mean of two details is. Tiles that are only put side by side
    show what the measure would see.
    """
    whole = upsampled(None)
    ratio: dict[str, float] = {}
    for name, config in {
        "blend": TilingConfig(32, 16, "blend"),
        "side by side": TilingConfig(32, 0, "crop"),
    }.items():
        starts = tile_starts(SIDE, config)[1:].tolist()
        ends = (tile_starts(SIDE, config)[:-1] + config.tile).tolist()
        borders = [*starts, *ends, *[(a + b) // 2 for a, b in zip(starts, ends, strict=True)]]
        ratio[name] = seam_ratio(upsampled(config), borders) / seam_ratio(whole, borders)
    assert 0.93 < ratio["blend"] < 1.03
    assert ratio["side by side"] > 1.15


@pytest.mark.parametrize("mode", MODES)
def test_norm_that_depends_on_the_tile_gives_a_seam_only_when_cropped(mode: str) -> None:
    """A network that subtracts its tile's mean, the simplest of norms, on a slow ramp."""
    ramp = np.broadcast_to(np.linspace(-1, 1, SIDE)[None, None, :, None], (1, SIDE, SIDE, 3))

    def denoise(x: Array, t: Array) -> Array:
        return x - 0.5 * jnp.mean(x, axis=(1, 2), keepdims=True)

    run = tiled_denoise(denoise, TilingConfig(32, 16, mode))  # type: ignore[arg-type]
    out = np.asarray(run(jnp.asarray(ramp, jnp.float32), jnp.zeros(1, jnp.int32)))
    steps, slope = np.diff(out[0, 0, :, 0]), 2 / (SIDE - 1)
    jump = np.abs(steps - slope).max()
    disagreement = 0.5 * slope * 16  # between the means of two tiles that start 16 apart
    if mode == "crop":
        assert jump == pytest.approx(disagreement, rel=1e-3)
    else:  # spread over the overlap, no step larger than the window's
        assert jump < 1.05 * disagreement * np.pi / (2 * 16)


# -- what is refused


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (16, 16), (16, -1)])
def test_tiles_must_be_larger_than_their_overlap(tile: int, overlap: int) -> None:
    with pytest.raises(UserError, match="overlap"):
        TilingConfig(tile, overlap)
