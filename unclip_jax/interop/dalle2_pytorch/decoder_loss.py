"""The training loss of one stage.

The mean squared (or absolute, or Huber) error of the prediction, weighted by p2, and for a learned
variance the variational bound times 0.001 (Nichol & Dhariwal 2021). `reference_compat` repeats what
DALLE2-pytorch computes where that is a mistake: the bound's mean takes every prediction for an
epsilon, and self-conditioning is given the raw prediction, not the x_0 it is given in sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.interop.dalle2_pytorch.decoder_conditioning import (
    LowresDraws,
    cropped,
    draw_lowres,
    lowres_condition,
    resized,
    to_network,
)
from unclip_jax.interop.dalle2_pytorch.decoder_config import DecoderConfig, Prediction
from unclip_jax.interop.dalle2_pytorch.schedule import NoiseSchedule, at
from unclip_jax.interop.dalle2_pytorch.unet import evaluate, unet_inputs

_BITS = 1 / math.log(2)
_SMALLEST = 1e-12
"""Probabilities below it count as it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossDraws:
    """The random choices of one batch. None where the stage has no such choice."""

    t: Array
    """[B] int32."""
    noise: Array
    """[B, S, S, C] standard normal, of the size that the loss is computed on."""
    image_keep: Array | None = None
    """[B] bool, False drops the image embedding; so does the next the text."""
    text_keep: Array | None = None
    self_cond: Array | None = None
    """[B] bool: whether the U-Net sees a first estimate."""
    lowres: LowresDraws | None = None
    corner: Array | None = None
    """[B, 2] int32, where the crop begins."""


def draw_loss(config: DecoderConfig, stage: int, key: Array, batch: int) -> LossDraws:
    """Choices as training makes them, independently for every sample."""
    one, keys = config.stages[stage], jax.random.split(key, 7)
    side, channels = one.image_size, config.channels
    size = one.random_crop_size or side
    return LossDraws(
        jax.random.randint(keys[0], (batch,), 0, config.timesteps),
        jax.random.normal(keys[1], (batch, size, size, channels)),
        jax.random.bernoulli(keys[2], 1 - config.image_cond_drop_prob, (batch,)),
        jax.random.bernoulli(keys[3], 1 - config.text_cond_drop_prob, (batch,)),
        jax.random.bernoulli(keys[4], 0.5, (batch,)) if one.unet.self_cond else None,
        draw_lowres(config, stage, keys[5], (batch, side, side, channels)) if stage else None,
        jax.random.randint(keys[6], (batch, 2), 0, side - size + 1)
        if one.random_crop_size
        else None,
    )


def decoder_loss(
    config: DecoderConfig,
    stage: int,
    params: Any,
    image: Array,
    draws: LossDraws,
    *,
    image_embed: Array | None = None,
    text_encodings: Array | None = None,
    text_mask: Array | None = None,
    reference_compat: bool = False,
) -> Array:
    """The mean loss of a batch, a float32 scalar.

    Args:
        stage: from 0.
        params: of that stage's U-Net.
        image: [B, H, W, C] float32 in the config's image range, at least of the stage's size.
        image_embed, text_encodings, text_mask: as for `unet.Unet`; taken where the stage has them.
    """
    one, schedule = config.stages[stage], config.schedule(stage)
    conditions = unet_inputs(one.unet, image_embed, text_encodings, text_mask)
    lowres = None
    if stage:
        assert draws.lowres is not None
        lowres = lowres_condition(config, stage, image, draws.lowres)
        if draws.lowres.level is not None:
            conditions["lowres_noise_level"] = draws.lowres.level
    image = resized(image, one.image_size)
    if one.random_crop_size and draws.corner is not None:
        image = cropped(image, draws.corner, one.random_crop_size)
        lowres = cropped(lowres, draws.corner, one.random_crop_size)  # pyright: ignore[reportArgumentType]
    if lowres is not None:
        conditions["lowres_image"] = to_network(config, lowres)
    x0 = to_network(config, image)
    t, noise = draws.t, draws.noise
    xt = schedule.q_sample(x0, t, noise)

    if draws.self_cond is not None and one.unet.self_cond:
        first, _ = split_output(evaluate(one.unet, params, xt, t, **conditions), config, stage)
        if not reference_compat:
            first = jnp.clip(start_of(schedule, one.prediction, xt, t, first), -1, 1)
        shown = jnp.where(draws.self_cond[:, None, None, None], first, 0.0)
        conditions["self_cond"] = jax.lax.stop_gradient(shown)

    output = evaluate(
        one.unet,
        params,
        xt,
        t,
        **conditions,
        image_keep=draws.image_keep,
        text_keep=draws.text_keep,
    )
    prediction, fraction = split_output(output, config, stage)
    if one.prediction == "velocity":
        target = schedule.velocity(x0, t, noise)
    else:
        target = x0 if one.prediction == "x0" else noise
    losses = _distance(config.loss_type, prediction - target).mean(axis=(1, 2, 3))
    if one.p2_loss_weight_gamma > 0:
        losses = losses * at(schedule.p2_loss_weight, t, losses)
    if fraction is None:
        return losses.mean()
    kind: Prediction = "epsilon" if reference_compat else one.prediction
    estimate = jax.lax.stop_gradient(start_of(schedule, kind, xt, t, prediction))
    log_variance = learned_log_variance(config, schedule, fraction, t)
    bound = _bound(schedule, x0, xt, t, schedule.posterior_mean(estimate, xt, t), log_variance)
    return losses.mean() + config.vb_loss_weight * bound.mean()


def split_output(output: Array, config: DecoderConfig, stage: int) -> tuple[Array, Array | None]:
    """What a U-Net returns as prediction and, of a learned variance, its other half."""
    if not config.stages[stage].learned_variance:
        return output, None
    prediction, fraction = jnp.split(output, 2, axis=-1)
    return prediction, fraction


def start_of(
    schedule: NoiseSchedule, kind: Prediction, xt: Array, t: Array, prediction: Array
) -> Array:
    """x_0 from a prediction."""
    if kind == "velocity":
        return schedule.start_from_velocity(xt, t, prediction)
    return prediction if kind == "x0" else schedule.start_from_noise(xt, t, prediction)


def learned_log_variance(
    config: DecoderConfig, schedule: NoiseSchedule, fraction: Array, t: Array
) -> Array:
    """Between the posterior's and beta's, in logarithms (Nichol & Dhariwal 2021, eq. 15).

    Args:
        fraction: [B, H, W, C], -1 for the first and 1 for the second.
    """
    share = (fraction + 1) * 0.5
    if config.learned_variance_constrain_frac:
        share = jax.nn.sigmoid(share)
    lower = schedule.posterior_log_variance(t, fraction)
    upper = jnp.log(at(schedule.betas, t, fraction))
    return share * upper + (1 - share) * lower


def _bound(
    schedule: NoiseSchedule, x0: Array, xt: Array, t: Array, mean: Array, log_variance: Array
) -> Array:
    """One term of the variational bound in bits per dimension, [B]: KL, or at t = 0 the NLL."""
    true_mean = schedule.posterior_mean(x0, xt, t)
    true_log = schedule.posterior_log_variance(t, x0)
    # Each term sees a harmless variance where the other one counts: its overflow there would make
    # the gradient NaN, as it does in the package.
    is_last = (t == 0)[:, None, None, None]
    log_kl = jnp.where(is_last, 0.0, log_variance)
    squared = (true_mean - mean) ** 2
    kl = 0.5 * (log_kl - true_log - 1 + jnp.exp(true_log - log_kl) + squared * jnp.exp(-log_kl))
    nll = -_log_likelihood(x0, mean, 0.5 * jnp.where(is_last, log_variance, 0.0))
    kl, nll = (value.mean(axis=(1, 2, 3)) * _BITS for value in (kl, nll))
    return jnp.where(t == 0, nll, kl)


def _log_likelihood(x: Array, mean: Array, log_scale: Array) -> Array:
    """Of a value of 256 between -1 and 1 under a Gaussian cut into as many bins."""
    inverse = jnp.exp(-jnp.maximum(log_scale, -40))  # steeper than float32 can tell
    above = _normal_cdf(inverse * (x - mean + 1 / 255))
    below = _normal_cdf(inverse * (x - mean - 1 / 255))
    inner = jnp.where(x > 0.999, 1 - below, above - below)
    return jnp.log(jnp.maximum(jnp.where(x < -0.999, above, inner), _SMALLEST))


def _normal_cdf(x: Array) -> Array:
    """The tanh approximation, which the bound was defined with."""
    x = jnp.clip(x, -100, 100)  # 0 or 1 long before; the cube would overflow
    return 0.5 * (1 + _tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@jax.custom_jvp
def _tanh(x: Array) -> Array:
    """tanh to the last bit near -1 and 1: a bin far from the mean is a difference of such values.

    XLA's own is some bits off there, and the logarithm of a probability of a few 1e-8 shows it.
    """
    small = jnp.exp(-2 * jnp.abs(x))
    return jnp.sign(x) * (1 - 2 * small / (1 + small))


@_tanh.defjvp
def _tanh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value = _tanh(primals[0])
    return value, (1 - value * value) * tangents[0]


def _distance(kind: str, difference: Array) -> Array:
    size = jnp.abs(difference)
    if kind == "l1":
        return size
    if kind == "l2":
        return difference**2
    return jnp.where(size < 1, 0.5 * difference**2, size - 0.5)


def without_dropping(draws: LossDraws) -> LossDraws:
    """The same, with every condition kept."""
    return replace(draws, image_keep=None, text_keep=None)
