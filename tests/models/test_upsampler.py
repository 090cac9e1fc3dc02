"""The upsamplers: what they are made of, what enters, and that crops are enough to run in full."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.networks import changed_rows, draw, random_params, same
from unclip_jax.config import from_dict, to_dict
from unclip_jax.errors import UserError
from unclip_jax.models.unet import UNetConfig
from unclip_jax.models.upsampler import Upsampler, UpsamplerConfig, resize_low_resolution

TINY = UpsamplerConfig(
    UNetConfig(
        image_size=32,
        in_channels=6,
        channels=8,
        channel_mult=(1, 2),
        depth=(1,),
        attention_resolutions=(),
        has_middle_attention=False,
        groups=4,
    ),
    has_augmentation=True,
)
PAPER_1024 = UpsamplerConfig(
    replace(
        UpsamplerConfig().unet,
        image_size=1024,
        channels=192,
        channel_mult=(1, 1, 2, 2, 4, 4),
        depth=(2,),
        dropout=0.0,
    )
)
T = np.array([3, 999], np.int32)
LEVEL = np.array([0.0, 0.5], np.float32)


class Tiny:
    """TINY with random weights everywhere; calls change some of the inputs."""

    def __init__(self) -> None:
        self.module = Upsampler(TINY)
        self.inputs = {
            "x": draw(1, 2, 16, 16, 3),
            "t": T,
            "low_res": np.tanh(draw(2, 2, 4, 4, 3)),
            "level": LEVEL,
        }
        self.params = random_params(self.module, *self.inputs.values())
        self.apply = jax.jit(self.module.apply)

    def __call__(self, **changes: Any) -> np.ndarray:
        inputs = (self.inputs | changes).values()
        return np.asarray(self.apply({"params": self.params}, *inputs))


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


def shapes(config: UpsamplerConfig, side: int) -> Any:
    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    inputs = (array(1, side, side, 3), array(1, dtype=jnp.int32), array(1, side // 4, side // 4, 3))
    return jax.eval_shape(Upsampler(config).init, jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize(
    ("config", "crop", "expected"),
    [(UpsamplerConfig(), 64, 729_710_726), (PAPER_1024, 256, 282_064_326)],  # 729.7M, 282.1M
    ids=["64 to 256", "256 to 1024"],
)
def test_papers_upsamplers(config: UpsamplerConfig, crop: int, expected: int) -> None:
    """Counted at the training crop; the full size has the same parameters and no attention."""
    params = shapes(config, crop)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert sum(math.prod(leaf.shape) for _, leaf in leaves) == expected
    assert not [path for path, _ in leaves if "attention" in jax.tree_util.keystr(path)]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes(config, 4 * crop))


def test_init_on_a_crop_runs_at_full_size_and_returns_zero() -> None:
    unet = replace(TINY.unet, channel_mult=(1,))
    module = Upsampler(UpsamplerConfig(unet))
    crop = (draw(1, 1, 8, 8, 3), T[:1], draw(2, 1, 2, 2, 3))
    params = jax.jit(module.init)(jax.random.key(0), *crop)
    out = jax.jit(module.apply)(params, draw(1, 1, 32, 16, 3), T[:1], draw(2, 1, 8, 4, 3))
    assert np.shape(out) == (1, 32, 16, 6)
    assert not np.asarray(out).any()


@pytest.mark.parametrize("name", ["x", "t", "low_res", "level"])
def test_depends_on(name: str, tiny: Tiny) -> None:
    value = tiny.inputs[name]
    other = value - 1 if name == "t" else value + 0.2
    assert changed_rows(tiny(), tiny(**{name: other})) == [True, True]


def test_row_depends_on_no_other_row(tiny: Tiny) -> None:
    swapped = {name: value[::-1] for name, value in tiny.inputs.items()}
    assert same(tiny(**swapped), tiny()[::-1])


def test_denoise_is_the_call_with_the_picture_already_resized(tiny: Tiny) -> None:
    resized = jax.image.resize(tiny.inputs["low_res"], (2, 16, 16, 3), "linear")
    denoise = jax.jit(partial(tiny.module.apply, method=Upsampler.denoise))
    out = denoise({"params": tiny.params}, *(tiny.inputs | {"low_res": resized}).values())
    assert same(np.asarray(out), tiny())


@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_resize_equals_the_sum_over_taps(method: str) -> None:
    """Half-pixel centres; Keys' cubic with a = -1/2. Away from borders, in float64."""
    small = draw(3, 1, 9, 9, 3)
    large = np.asarray(resize_low_resolution(jnp.asarray(small), (36, 36), method))  # type: ignore[arg-type]

    def weight(d: float) -> float:
        if method == "linear":
            return max(1 - d, 0.0)
        if d < 1:
            return 1.5 * d**3 - 2.5 * d**2 + 1
        return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0

    matrix = np.array(
        [[weight(abs((o + 0.5) / 4 - 0.5 - i)) for i in range(9)] for o in range(12, 24)]
    )
    expected = np.einsum("oi,pj,bijc->bopc", matrix, matrix, small.astype(np.float64))
    np.testing.assert_allclose(large[:, 12:24, 12:24], expected, atol=2e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"in_channels": 3},
        {"has_middle_attention": True},
        {"attention_resolutions": (16,)},
        {"context_width": 8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_network_that_is_no_upsampler_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="unet"):
        replace(TINY, unet=replace(TINY.unet, **change))


@pytest.mark.parametrize("levels", [(0.5, 0.2), (-0.1, 1.0), (0.1, 1.5)])
def test_augmentation_levels_out_of_range_are_refused(levels: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="sampling_augmentation"):
        replace(TINY, sampling_augmentation=levels[0], max_augmentation=levels[1])


def test_sides_that_do_not_fit_are_refused(tiny: Tiny) -> None:
    variables = {"params": tiny.params}
    small = tiny.inputs["low_res"]
    with pytest.raises(UserError, match="multiplies by 4"):
        tiny.module.apply(variables, draw(1, 2, 8, 8, 3), T, small, LEVEL)
    with pytest.raises(UserError, match="divisible by 2"):
        tiny.module.apply(
            variables, draw(1, 2, 7, 8, 3), T, draw(1, 2, 7, 8, 3), LEVEL, method=Upsampler.denoise
        )
    with pytest.raises(UserError, match="level"):
        tiny.module.apply(variables, tiny.inputs["x"], T, small)


def test_config_becomes_json_and_comes_back() -> None:
    assert from_dict(UpsamplerConfig, to_dict(TINY)) == TINY
    assert (UpsamplerConfig().multiple, PAPER_1024.multiple) == (8, 32)
