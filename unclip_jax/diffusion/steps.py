"""One step of the samplers that remember nothing: DDPM, DDIM, and DDIM the other way round.

    DDPM   q(x_{t-1} | x_t, x_0) with a fixed or learned variance   (Ho et al. 2020, eqs. 6-7)
    DDIM   sqrt(abar') x_0 + sqrt(1 - abar' - sigma^2) eps + sigma z,   abar' = abar_{t-1},
           sigma = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar')
                                                              (Song et al. 2021, eqs. 12 and 16)

DDIM with eta 0 is a rotation. With sqrt(abar) = cos(a) and sqrt(1 - abar) = sin(a), x_t and v are
(x_0, eps) turned by the angle a, so that x_{t-1} = cos(d) x_t - sin(d) v for the angle d between
the two levels. Its inverse solves that for x_t, which is on both sides because v depends on it.

Everywhere below, x0 and xt are [B, ...] float32, and t is [B] int32 in [0, N).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.process import eps_from_x0, extract, posterior
from unclip_jax.diffusion.schedule import Schedule


def ddpm_step(
    schedule: Schedule,
    x0: Array,
    xt: Array,
    t: Array,
    noise: Array,
    log_variance: Array,
    gradient: Array | None = None,
) -> Array:
    """A draw around the posterior mean (Ho et al. 2020, algorithm 2); no noise at t = 0.

    Args:
        noise: [B, ...] float32.
        log_variance: [B, ...] or [B, 1, ...] float32.
        gradient: [B, ...], of log p(y | x_t); moves the mean by variance * gradient (Dhariwal &
            Nichol 2021, algorithm 1), at t = 0 too.
    """
    mean, _ = posterior(schedule, x0, xt, t)
    if gradient is not None:
        mean = mean + jnp.exp(log_variance) * gradient.astype(jnp.float32)
    is_noisy = (t > 0).reshape(t.shape + (1,) * (xt.ndim - 1))
    return mean + jnp.where(is_noisy, jnp.exp(0.5 * log_variance), 0.0) * noise


def ddim_step(
    schedule: Schedule, x0: Array, xt: Array, t: Array, noise: Array | None, *, eta: float
) -> Array:
    """The step of the module's docstring (Song et al. 2021, eqs. 12 and 16); x0 itself at t = 0.

    eps is the one that belongs to the given, thresholded x0.

    Args:
        noise: [B, ...] float32, or None where eta is 0.
        eta: 0 to 1, a Python number: the factors are made of it in float64.
    """
    previous = schedule.alphas_bar_prev
    variance = eta**2 * schedule.posterior_variance
    eps = eps_from_x0(schedule, x0, xt, t)
    mean = extract(np.sqrt(previous), t, xt.ndim) * x0
    # At t = 0 and at eta = 1 the difference is 0 up to rounding, on either side.
    direction = np.sqrt(np.maximum(1 - previous - variance, 0))
    mean = mean + extract(direction, t, xt.ndim) * eps
    if noise is None:
        return mean
    return mean + extract(np.sqrt(variance), t, xt.ndim) * noise


def ddim_invert_step(schedule: Schedule, x0: Array, xt: Array, t: Array) -> Array:
    """x_{t+1} of the deterministic process (Dhariwal & Nichol 2021, appendix F).

    sqrt(abar_{t+1}) x_0 + sqrt(1 - abar_{t+1}) eps, where abar after the last step is 0.
    """
    following = np.append(schedule.alphas_bar[1:], 0.0)
    eps = eps_from_x0(schedule, x0, xt, t)
    mean = extract(np.sqrt(following), t, xt.ndim) * x0
    return mean + extract(np.sqrt(1 - following), t, xt.ndim) * eps


def ddim_solve_step(schedule: Schedule, v: Array, previous: Array, t: Array) -> Array:
    """x_t of which DDIM with eta 0 makes `previous`, if v is what the network says of x_t.

    (previous + sin(d) v) / cos(d). Put a guess of v in and v of the result in again: the error is
    multiplied by tan(d) |dv/dx_t| each time, and for data of standard deviation s
    |dv/dx_t| <= |1 - s^2| / 2s. Solved for eps or x_0 instead, the factor is near 1 at one end.

    Args:
        v: [B, ...] float32, sqrt(abar) eps - sqrt(1 - abar) x_0.
        previous: [B, ...] float32, x_{t-1}; at t = 0 the clean sample.
    """
    signal, noise = schedule.sqrt_alphas_bar, schedule.sqrt_one_minus_alphas_bar
    previous_signal = np.sqrt(schedule.alphas_bar_prev)
    previous_noise = np.sqrt(1 - schedule.alphas_bar_prev)
    cosine = signal * previous_signal + noise * previous_noise
    sine = previous_signal * noise - previous_noise * signal
    ndim = previous.ndim
    return (previous + extract(sine, t, ndim) * v) / extract(cosine, t, ndim)
