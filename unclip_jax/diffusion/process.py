"""The forward process, its posterior, and the three things that a network can predict.

With x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, a network that knows x_t and one of

    eps,    x0,    v = sqrt(abar) eps - sqrt(1 - abar) x_0    (Salimans & Ho 2022, section 4)

knows the other two; (x_0, eps) -> (x_t, v) is a rotation, so that
x_0 = sqrt(abar) x_t - sqrt(1 - abar) v and eps = sqrt(1 - abar) x_t + sqrt(abar) v.

Everywhere below, x, eps, v and outputs are [B, ...] of any rank and are computed in float32, and
t is [B] int32 in [0, N), the index into the chain that is passed, respaced or not.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.errors import UserError

Prediction = Literal["eps", "x0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned_range"]


def extract(table: np.ndarray, t: Array, ndim: int) -> Array:
    """Entries `t` of a float64 table [N], cast once: [B, 1, ...] float32 of rank `ndim`."""
    values = jnp.asarray(np.asarray(table, dtype=np.float32))[t]
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def q_sample(schedule: Schedule, x0: Array, t: Array, noise: Array) -> Array:
    """A draw of q(x_t | x_0) (Ho et al. 2020, eq. 4): sqrt(abar) x_0 + sqrt(1 - abar) noise.

    Args:
        x0, noise: [B, ...] float32, the clean sample and standard normal noise.
        t: [B] int32 in [0, N).
    Returns:
        [B, ...] float32.
    """
    signal = extract(schedule.sqrt_alphas_bar, t, x0.ndim)
    return signal * x0 + extract(schedule.sqrt_one_minus_alphas_bar, t, x0.ndim) * noise


def posterior(schedule: Schedule, x0: Array, xt: Array, t: Array) -> tuple[Array, Array]:
    """Mean and variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eqs. 6-7).

    Args:
        x0, xt: [B, ...] float32, the clean and the noisy sample.
        t: [B] int32 in [0, N); at t = 0 the mean is x0 and the variance 0.
    Returns:
        mean [B, ...] and variance [B, 1, ...], float32.
    """
    coef1 = extract(schedule.posterior_mean_coef1, t, xt.ndim)
    coef2 = extract(schedule.posterior_mean_coef2, t, xt.ndim)
    return coef1 * x0 + coef2 * xt, extract(schedule.posterior_variance, t, xt.ndim)


def x0_from_eps(schedule: Schedule, eps: Array, xt: Array, t: Array) -> Array:
    """x_0 = x_t / sqrt(abar) - sqrt(1 / abar - 1) eps, [B, ...] float32.

    At the end of a cosine chain the factors are 2e4, and so is the error of eps that it returns.

    Raises:
        UserError: a chain that ends without any signal (abar = 0).
    """
    _refuse_eps_without_signal(schedule)
    scale = extract(schedule.sqrt_recip_alphas_bar, t, xt.ndim)
    return scale * xt - extract(schedule.sqrt_recipm1_alphas_bar, t, xt.ndim) * eps


def eps_from_x0(schedule: Schedule, x0: Array, xt: Array, t: Array) -> Array:
    """eps = (x_t - sqrt(abar) x_0) / sqrt(1 - abar), [B, ...] float32."""
    signal = extract(schedule.sqrt_alphas_bar, t, xt.ndim) * x0
    return (xt - signal) / extract(schedule.sqrt_one_minus_alphas_bar, t, xt.ndim)


def v_from_x0_eps(schedule: Schedule, x0: Array, eps: Array, t: Array) -> Array:
    """v = sqrt(abar) eps - sqrt(1 - abar) x_0, [B, ...] float32."""
    signal = extract(schedule.sqrt_alphas_bar, t, x0.ndim)
    return signal * eps - extract(schedule.sqrt_one_minus_alphas_bar, t, x0.ndim) * x0


def x0_from_v(schedule: Schedule, v: Array, xt: Array, t: Array) -> Array:
    """x_0 = sqrt(abar) x_t - sqrt(1 - abar) v, [B, ...] float32."""
    signal = extract(schedule.sqrt_alphas_bar, t, xt.ndim)
    return signal * xt - extract(schedule.sqrt_one_minus_alphas_bar, t, xt.ndim) * v


def eps_from_v(schedule: Schedule, v: Array, xt: Array, t: Array) -> Array:
    """eps = sqrt(1 - abar) x_t + sqrt(abar) v, [B, ...] float32."""
    noise = extract(schedule.sqrt_one_minus_alphas_bar, t, xt.ndim)
    return noise * xt + extract(schedule.sqrt_alphas_bar, t, xt.ndim) * v


def to_x0(schedule: Schedule, prediction: Prediction, output: Array, xt: Array, t: Array) -> Array:
    """The clean sample that a network's output stands for.

    Args:
        prediction: what the network predicts.
        output: [B, ...], as xt: without the channels of a learned variance.
        xt: [B, ...] float32, what the network was given.
        t: [B] int32 in [0, N).
    Returns:
        [B, ...] float32, not clipped.
    """
    output = output.astype(jnp.float32)
    if prediction == "eps":
        return x0_from_eps(schedule, output, xt, t)
    if prediction == "v":
        return x0_from_v(schedule, output, xt, t)
    return output


def to_eps(schedule: Schedule, prediction: Prediction, output: Array, xt: Array, t: Array) -> Array:
    """The noise that a network's output stands for; arguments as `to_x0`, [B, ...] float32."""
    output = output.astype(jnp.float32)
    if prediction == "x0":
        return eps_from_x0(schedule, output, xt, t)
    if prediction == "v":
        return eps_from_v(schedule, output, xt, t)
    return output


def target(schedule: Schedule, prediction: Prediction, x0: Array, noise: Array, t: Array) -> Array:
    """What the network should have said of q_sample(x0, t, noise), [B, ...] float32.

    Raises:
        UserError: eps on a chain that ends without any signal: nothing could be sampled from it.
    """
    if prediction == "eps":
        _refuse_eps_without_signal(schedule)
        return noise
    if prediction == "v":
        return v_from_x0_eps(schedule, x0, noise, t)
    return x0


def split_variance(output: Array) -> tuple[Array, Array]:
    """Cuts the last axis in half: the prediction [..., C] and the raw variance values [..., C].

    Networks with variance `learned_range` return 2C channels, the prediction first.
    """
    prediction, values = jnp.split(output, 2, axis=-1)
    return prediction, values


def model_log_variance(
    schedule: Schedule, variance: Variance, values: Array | None, t: Array, ndim: int
) -> Array:
    """Log variance of the reverse kernel p(x_{t-1} | x_t).

    fixed_small: the posterior's; fixed_large: beta (Ho et al. 2020, section 3.2). learned_range
    (Nichol & Dhariwal 2021, eq. 15): frac log beta + (1 - frac) log posterior variance with
    frac = (values + 1) / 2, both of the chain that is passed; not confined to [0, 1].

    Args:
        values: [B, ...], the second half of `split_variance`; only learned_range reads it.
        t: [B] int32 in [0, N).
        ndim: rank of the samples.
    Returns:
        float32, [B, 1, ...], or [B, ...] where it is learned.
    """
    small = extract(schedule.posterior_log_variance_clipped, t, ndim)
    if variance == "fixed_small":
        return small
    if variance == "fixed_large":
        return extract(schedule.large_log_variance, t, ndim)
    if values is None:
        raise ValueError("learned_range needs the variance values that the network returned")
    # The real beta also at t = 0, unlike fixed_large: so ADM's networks were trained.
    large = extract(np.log(schedule.betas), t, ndim)
    fraction = (values.astype(jnp.float32) + 1) / 2
    return fraction * large + (1 - fraction) * small


def _refuse_eps_without_signal(schedule: Schedule) -> None:
    if schedule.alphas_bar[-1] == 0:
        raise UserError(
            "prediction 'eps' says nothing about the picture where the schedule has no signal "
            "left (zero terminal SNR): choose v or x0"
        )
