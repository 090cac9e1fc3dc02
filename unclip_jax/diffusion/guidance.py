"""What is done to a network's output between two steps.

In this order: classifier-free guidance, thresholding of the clean sample, steering by a gradient.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.process import extract, split_variance
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.errors import UserError

Thresholding = Literal["none", "static", "dynamic"]


def classifier_free_guidance(
    cond: Array,
    uncond: Array,
    scale: Array | float,
    *,
    rescale: float = 0.0,
    learned_variance: bool = False,
) -> Array:
    """uncond + scale (cond - uncond) (Ho & Salimans 2022, eq. 6 with scale = 1 + w).

    Linear in the output, so eps, x0 and v may be guided alike: mixing any of them mixes the others.

    Args:
        cond, uncond: [B, ..., C], the network's output with and without its conditions.
        scale: scalar or [B]; 1 returns cond, 0 uncond.
        rescale: phi of Lin et al. 2023 (section 3.4), 0 to 1: how much of the way each row's
            standard deviation goes back to that of `cond`. They use 0.7, on v.
        learned_variance: the last axis is 2C, the second half variance values; only the prediction
            is guided, and the variance is that of the conditional branch (GLIDE).
    Returns:
        The shape of `cond`, float32.
    """
    cond, uncond = cond.astype(jnp.float32), uncond.astype(jnp.float32)
    values = None
    if learned_variance:
        cond, values = split_variance(cond)
        uncond, _ = split_variance(uncond)
    weight = jnp.asarray(scale, jnp.float32)
    if weight.ndim == 1:
        weight = weight.reshape(weight.shape + (1,) * (cond.ndim - 1))
    guided = uncond + weight * (cond - uncond)
    if rescale:
        axes = tuple(range(1, cond.ndim))
        wanted = jnp.std(cond, axes, keepdims=True)
        found = jnp.maximum(jnp.std(guided, axes, keepdims=True), 1e-12)
        guided = guided * (rescale * (wanted / found) + (1 - rescale))
    return guided if values is None else jnp.concatenate([guided, values], axis=-1)


def scale_in_interval(
    scale: Array | float, timestep: Array, interval: tuple[int, int] | None
) -> Array:
    """The guidance scale inside an interval of noise levels, 1 outside (Kynkaanniemi et al. 2024).

    Args:
        scale: scalar or [B].
        timestep: [B] int32, of the training chain.
        interval: first and last guided timestep, both included; None guides all of them.
    Returns:
        [B] float32, what `classifier_free_guidance` takes.
    """
    scale = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), timestep.shape)
    if interval is None:
        return scale
    low, high = interval
    return jnp.where((timestep >= low) & (timestep <= high), scale, 1.0)


def steer_x0(schedule: Schedule, x0: Array, gradient: Array, t: Array) -> Array:
    """The clean sample of eps - sqrt(1 - abar) grad log p(y | x_t) (ADM, algorithm 2).

    Which is x_0 + (1 - abar) / sqrt(abar) grad log p(y | x_t).

    Args:
        x0: [B, ...] float32, the predicted clean sample.
        gradient: [B, ...] float32, of log p(y | x_t) with respect to x_t, its scale included.
        t: [B] int32 in [0, N).
    Raises:
        UserError: a chain that ends without any signal (abar = 0), where x_0 would be infinite.
    """
    if schedule.alphas_bar[-1] == 0:
        raise UserError(
            "a gradient cannot steer ddim or a solver from a schedule without any signal at its "
            "end (zero terminal SNR): choose ddpm, or leave out the last timestep"
        )
    factor = (1 - schedule.alphas_bar) / schedule.sqrt_alphas_bar
    return x0 + extract(factor, t, x0.ndim) * gradient.astype(jnp.float32)


def threshold(
    x0: Array, method: Thresholding, *, limit: float = 1.0, percentile: float = 0.995
) -> Array:
    """Keeps a predicted clean sample in the range that data has.

    static: clips to [-limit, limit]. dynamic (Saharia et al. 2022, section 2.3): per row, s is the
    given percentile of |x0|, at least `limit`; clips to [-s, s] and scales by limit / s.

    Args:
        x0: [B, ...] float32, after guidance.
        limit: 1 for images; 10 for Karlo's standardised embeddings.
        percentile: fraction in [0, 1]; only dynamic reads it.
    Raises:
        UserError: an unknown method.
    """
    if method == "none":
        return x0
    if method == "static":
        return jnp.clip(x0, -limit, limit)
    if method != "dynamic":
        raise UserError(f"thresholding {method!r} is unknown: choose none, static or dynamic")
    magnitudes = jnp.abs(x0).reshape(x0.shape[0], -1)
    bound = jnp.maximum(jnp.quantile(magnitudes, percentile, axis=1), limit)
    bound = bound.reshape(bound.shape + (1,) * (x0.ndim - 1))
    return jnp.clip(x0, -bound, bound) * (limit / bound)
