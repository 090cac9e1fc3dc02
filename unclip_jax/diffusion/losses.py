"""What a network is trained on: the squared error of its prediction, and the variational bound.

With a learned variance, the hybrid loss of Nichol & Dhariwal (2021, eq. 16) is
L_simple + lambda L_vlb with lambda = 0.001 and L_vlb the sum of the bound's T terms. One timestep
is drawn a sample, so that L_vlb is T times the drawn term and the term's weight is T / 1000.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.process import (
    Prediction,
    Variance,
    extract,
    model_log_variance,
    posterior,
    split_variance,
    target,
    to_x0,
)
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.diffusion.weighting import LossWeighting, loss_weight


def mse_loss(prediction: Array, target: Array) -> Array:
    """Squared error, mean over all axes but the first: [B, ...] and [B, ...] to [B] float32."""
    return _row_mean((prediction.astype(jnp.float32) - target.astype(jnp.float32)) ** 2)


def vb_terms(
    schedule: Schedule, x0: Array, xt: Array, t: Array, mean: Array, log_variance: Array
) -> Array:
    """One term of the variational bound (Ho et al. 2020, eq. 5), in bits a dimension.

    For t > 0, KL(q(x_{t-1} | x_t, x_0) || N(mean, variance)); at t = 0, -log p(x_0 | x_1), the
    Gaussian's mass in the pixel's bin x_0 +- 1/255 (eq. 13).

    Args:
        x0, xt: [B, ...] float32; x0 must hold uint8 pixels / 127.5 - 1 for t = 0 to mean anything.
        t: [B] int32 in [0, N).
        mean: [B, ...] float32, of the reverse kernel.
        log_variance: float32, [B, ...] or [B, 1, ...], of the reverse kernel.
    Returns:
        [B] float32, mean over the dimensions.
    """
    true_mean, _ = posterior(schedule, x0, xt, t)
    true_log_variance = extract(schedule.posterior_log_variance_clipped, t, xt.ndim)
    log_variance = jnp.broadcast_to(log_variance, x0.shape)
    divergence = _normal_kl(true_mean, true_log_variance, mean, log_variance)
    likelihood = _discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_variance)
    terms = jnp.where(t == 0, -_row_mean(likelihood), _row_mean(divergence))
    return terms / math.log(2)


def diffusion_loss(
    schedule: Schedule,
    output: Array,
    x0: Array,
    xt: Array,
    t: Array,
    noise: Array,
    *,
    prediction: Prediction,
    variance: Variance,
    weighting: LossWeighting | None = None,
) -> tuple[Array, dict[str, Array]]:
    """L_simple, or with `learned_range` the hybrid loss (Nichol & Dhariwal 2021, eq. 16).

    The bound's gradient reaches only the variance: it sees the predicted mean as a constant.
    A weighting multiplies the squared error and neither the bound nor the metrics.

    Args:
        output: [B, ..., C] of any float type, or [B, ..., 2C] with `learned_range`.
        x0, noise: [B, ..., C] float32, the clean sample and the noise that was drawn.
        xt: [B, ..., C] float32, q_sample(schedule, x0, t, noise), what the network was given.
        t: [B] int32 in [0, N).
        weighting: of the noise levels; None weights all alike.
    Returns:
        loss [B] float32; metrics, each [B] float32: `mse`, and with `learned_range` `vb`, the term
        of the bound in bits a dimension.
    """
    weight: Array | float = 1.0
    if weighting is not None:
        weight = extract(loss_weight(schedule, prediction, weighting), t, 1)
    if variance != "learned_range":
        mse = mse_loss(output, target(schedule, prediction, x0, noise, t))
        return mse * weight, {"mse": mse}
    predicted, values = split_variance(output)
    mse = mse_loss(predicted, target(schedule, prediction, x0, noise, t))
    predicted_x0 = to_x0(schedule, prediction, jax.lax.stop_gradient(predicted), xt, t)
    mean, _ = posterior(schedule, predicted_x0, xt, t)
    log_variance = model_log_variance(schedule, variance, values, t, xt.ndim)
    vb = vb_terms(schedule, x0, xt, t, mean, log_variance)
    return mse * weight + vb * (len(schedule) / 1000), {"mse": mse, "vb": vb}


def _row_mean(values: Array) -> Array:
    return values.reshape(values.shape[0], -1).mean(axis=1)


def _normal_kl(mean1: Array, log_variance1: Array, mean2: Array, log_variance2: Array) -> Array:
    """KL(N(mean1, variance1) || N(mean2, variance2)) in nats, elementwise."""
    ratio = jnp.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2) ** 2 * jnp.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 - 1 + ratio + distance)


def _discretized_gaussian_log_likelihood(x0: Array, mean: Array, log_scale: Array) -> Array:
    """Log probability of the bin x0 +- 1/255 in nats; the outermost bins reach to infinity."""
    inverse_scale = jnp.exp(-log_scale)
    upper = _normal_cdf((x0 - mean + 1 / 255) * inverse_scale)
    lower = _normal_cdf((x0 - mean - 1 / 255) * inverse_scale)
    inside = _safe_log(upper - lower)
    return jnp.where(
        x0 < -0.999, _safe_log(upper), jnp.where(x0 > 0.999, _safe_log(1 - lower), inside)
    )


def _normal_cdf(x: Array) -> Array:
    """The tanh approximation that IDDPM, ADM and GLIDE trained with; wrong by at most 3e-4."""
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _safe_log(probability: Array) -> Array:
    return jnp.log(jnp.maximum(probability, 1e-12))
