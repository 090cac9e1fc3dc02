"""What is done to a network's output between two steps: guidance first, then thresholding."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.process import split_variance
from unclip_jax.errors import UserError

Thresholding = Literal["none", "static", "dynamic"]


def classifier_free_guidance(
    cond: Array, uncond: Array, scale: Array | float, *, learned_variance: bool = False
) -> Array:
    """uncond + scale (cond - uncond) (Ho & Salimans 2022, eq. 6 with scale = 1 + w).

    Linear in the output, so eps, x0 and v may be guided alike: mixing any of them mixes the others.

    Args:
        cond, uncond: [B, ..., C], the network's output with and without its conditions.
        scale: scalar or [B]; 1 returns cond, 0 uncond.
        learned_variance: the last axis is 2C, the second half variance values; only the prediction
            is guided, and the variance is that of the conditional branch (GLIDE).
    Returns:
        The shape of `cond`, float32.
    """
    cond, uncond = cond.astype(jnp.float32), uncond.astype(jnp.float32)
    weight = jnp.asarray(scale, jnp.float32)
    if weight.ndim == 1:
        weight = weight.reshape(weight.shape + (1,) * (cond.ndim - 1))
    if not learned_variance:
        return uncond + weight * (cond - uncond)
    cond, values = split_variance(cond)
    uncond, _ = split_variance(uncond)
    return jnp.concatenate([uncond + weight * (cond - uncond), values], axis=-1)


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
