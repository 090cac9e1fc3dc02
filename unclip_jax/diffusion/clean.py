"""What every sampler does with a network's output first: the clean sample it stands for."""

from __future__ import annotations

from collections.abc import Callable

from jax import Array

from unclip_jax.diffusion.guidance import threshold
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
    x0 = to_x0(schedule, prediction, output, xt, t)
    x0 = threshold(x0, config.thresholding, limit=config.limit, percentile=config.percentile)
    return x0, values
