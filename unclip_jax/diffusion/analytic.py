"""Analytic-DPM: the reverse kernels' best variances, from one pass over held-out data.

The best isotropic variance of p(x_{t-1} | x_t) is that of q(x_{t-1} | x_t, x_0), plus what E[x_0 |
x_t] in place of x_0 hides (Bao et al. 2022, theorem 1):

    posterior variance + (sqrt(abar_{t-1}) beta_t / (1 - abar_t))^2 E[Var(x_0 | x_t)],
    E[Var(x_0 | x_t)] = (1 - abar) / abar (1 - Gamma),        Gamma = E|eps(x_t, t)|^2 / d,

both a dimension. For that E[x_0 | x_t], eps - eps(x_t, t) is orthogonal to eps(x_t, t), so that
Gamma is 1 - E|eps - eps(x_t, t)|^2 / d. `score_norms` estimates this form, because no trained
network is the best one, and the best variance around the mean that it has is made of its residual
(Bao et al. 2022, "Estimating the Optimal Covariance with Imperfect Mean"): what is hidden is then
the held-out mean squared error of x_0 at that noise level. The norm itself misleads: with the
shipped prior, which predicts x_0, it is above 1 at most levels, as if nothing were hidden.

Average what `score_norms` returns over the batches of a pass and hand the result to
`analytic_variance`, whose table `samplers.sample` takes. Gamma is a fact of the network and the
noise level, not of the steps between: `respace` keeps abar and the timestep of every step that it
keeps, so the rows of a shorter chain are those of the training chain at `schedule.timesteps`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.clean import Denoise
from unclip_jax.diffusion.process import Prediction, Variance, q_sample, split_variance, to_eps
from unclip_jax.diffusion.samplers import row_noise
from unclip_jax.diffusion.schedule import Schedule


def score_norms(
    denoise: Denoise,
    schedule: Schedule,
    x0: Array,
    keys: Array,
    prediction: Prediction,
    variance: Variance = "fixed_small",
) -> Array:
    """Gamma of every step, estimated on one batch: [N] float32, at most 1, N calls of the network.

    Args:
        denoise: the network, unguided, as for `sample`.
        schedule: the chain of N steps that will be sampled, or the training chain.
        x0: [B, ...] float32, held-out data.
        keys: [B] typed keys; the noise of a row and step is that of `sample`.
        prediction, variance: what the network was trained with.
    """
    rows = x0.shape[0]
    timesteps = jnp.asarray(schedule.timesteps)

    def at(index: Array) -> Array:
        t, timestep = jnp.full((rows,), index), jnp.full((rows,), timesteps[index])
        noise = row_noise(keys, timesteps[index], x0.shape)
        xt = q_sample(schedule, x0, t, noise)
        output = denoise(xt, timestep)
        if variance == "learned_range":
            output, _ = split_variance(output)
        return 1 - jnp.mean((noise - to_eps(schedule, prediction, output, xt, t)) ** 2)

    return jax.lax.map(at, jnp.arange(len(schedule), dtype=jnp.int32))


def analytic_variance(schedule: Schedule, gamma: np.ndarray, *, limit: float = 1.0) -> np.ndarray:
    """The best isotropic variances of the reverse kernels, [N] float64, as `sample` takes them.

    What x_0 hides is clipped to its bounds: at least 0, and at most limit^2, because a variance is
    no more than the mean square (Bao et al. 2022, theorem 2, where it is that of data in [a, b]).
    The upper one matters: at the noisy end of a cosine chain the formula multiplies the error of
    Gamma by 4e8.

    Args:
        schedule: the chain for which `gamma` was estimated.
        gamma: [N], the mean of `score_norms` over a pass.
        limit: largest root mean square of a clean sample's entries: 1 for pictures in [-1, 1], the
            length over sqrt(d) for vectors that all have one length.
    """
    hidden = np.full(len(schedule), limit**2)
    unseen = (1 - schedule.alphas_bar) * (1 - np.asarray(gamma, np.float64))
    np.divide(unseen, schedule.alphas_bar, out=hidden, where=schedule.alphas_bar > 0)
    hidden = np.clip(hidden, 0, limit**2)
    return schedule.posterior_variance + schedule.posterior_mean_coef1**2 * hidden
