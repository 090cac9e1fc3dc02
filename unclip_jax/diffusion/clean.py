"""What every sampler does with a network's output first: the clean sample it stands for."""

from __future__ import annotations

from collections.abc import Callable

from jax import Array

from unclip_jax.diffusion.guidance import steer_x0, threshold
from unclip_jax.diffusion.process import Prediction, Variance, split_variance, to_x0
from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.diffusion.schedule import Schedule

Denoise = Callable[[Array, Array], Array]
"""(x_t [B, ...] float32, training timestep [B] int32) -> output [B, ...], guidance included."""


def clean_sample(
    schedule: Schedule,
    config: SamplerConfig,
    prediction: Prediction,
    variance: Variance,
    output: Array,
    xt: Array,
    t: Array,
) -> tuple[Array, Array | None]:
    """The thresholded x_0 [B, ...] float32, and the raw variance values if they are learned.

    Args:
        output: [B, ..., C], or [B, ..., 2C] with `learned_range`.
        xt: [B, ..., C] float32, what the network was given.
        t: [B] int32 in [0, N).
    """
    values = None
    if variance == "learned_range":
        output, values = split_variance(output)
    return _kept_in_range(config, to_x0(schedule, prediction, output, xt, t)), values


def steered_sample(
    schedule: Schedule, config: SamplerConfig, x0: Array, gradient: Array | None, t: Array
) -> Array:
    """x_0 moved along a gradient by samplers that add no noise, and thresholded again.

    Where little signal is left, the gradient's factor (1 - abar) / sqrt(abar) reaches 2e4: without
    a second threshold one step of a short chain throws the sample out of the range of pictures.
    """
    if gradient is None:
        return x0
    return _kept_in_range(config, steer_x0(schedule, x0, gradient, t))


def _kept_in_range(config: SamplerConfig, x0: Array) -> Array:
    return threshold(x0, config.thresholding, limit=config.limit, percentile=config.percentile)
