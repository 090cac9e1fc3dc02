"""Diffusion of N(mu, s^2), where everything is known in closed form.

With c = sqrt(abar), n = sqrt(1 - abar) and V = s^2 c^2 + n^2 the variance of x_t, the optimal
denoiser is E[x_0 | x_t] = mu + (s^2 c / V)(x_t - c mu), and Var[x_0 | x_t] = s^2 n^2 / V. A sampler
with this denoiser is affine in its noise, so its mean and variance are found exactly, without
drawing: run it once on zeros and once on each unit vector of the noise (`moments`).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.process import Prediction, Variance, extract
from unclip_jax.diffusion.samplers import Denoise, Gradient, SamplerConfig, sample
from unclip_jax.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Gaussian:
    """The data N(mean, std^2), independent in every dimension."""

    mean: float
    std: float

    def marginal_variance(self, alphas_bar: np.ndarray) -> np.ndarray:
        return self.std**2 * alphas_bar + 1 - alphas_bar

    def posterior_variance(self, alphas_bar: np.ndarray) -> np.ndarray:
        """Var[x_0 | x_t]."""
        return self.std**2 * (1 - alphas_bar) / self.marginal_variance(alphas_bar)

    def denoiser(self, training: Schedule, prediction: Prediction) -> Denoise:
        """The optimal network (x_t, training timestep) -> output."""
        signal, noise = training.sqrt_alphas_bar, training.sqrt_one_minus_alphas_bar
        variance = self.marginal_variance(training.alphas_bar)
        x0, eps = self.std**2 * signal / variance, noise / variance
        gain, offset = {
            "x0": (x0, np.full_like(signal, self.mean)),
            "eps": (eps, np.zeros_like(signal)),
            "v": (signal * eps - noise * x0, -noise * self.mean),
        }[prediction]

        def denoise(xt: Array, timestep: Array) -> Array:
            centred = xt - extract(signal * self.mean, timestep, xt.ndim)
            return extract(gain, timestep, xt.ndim) * centred + extract(offset, timestep, xt.ndim)

        return denoise


def kernel(data: Gaussian, chain: Schedule, config: SamplerConfig) -> tuple[np.ndarray, np.ndarray]:
    """(a, kappa) of x_{t-1} = kappa x_0 + b x_t + noise, a = kappa dx_0/dx_t + b, float64 [N].

    Written with the definition of DDIM and with Bayes' rule rather than with the package's tables.
    """
    level, previous = chain.alphas_bar, np.append(1.0, chain.alphas_bar[:-1])
    ratio = level / previous
    if config.method == "ddim":
        sigma = config.eta * np.sqrt((1 - previous) / (1 - level) * (1 - ratio))
        b = np.sqrt(np.maximum(1 - previous - sigma**2, 0) / (1 - level))
    else:
        b = np.sqrt(ratio) * (1 - previous) / (1 - level)
    kappa = np.sqrt(previous) - b * np.sqrt(level)
    gain = data.std**2 * np.sqrt(level) / data.marginal_variance(level)
    return kappa * gain + b, kappa


def missing_variance(data: Gaussian, chain: Schedule, config: SamplerConfig) -> float:
    """How much variance a sampler lacks that adds the noise of q(x_{t-1} | x_t, x_0) and no more.

    If x_t has the right marginal, x_{t-1} = kappa x_0 + b x_t + sigma z has it with the true x_0;
    with E[x_0 | x_t] in its place it lacks kappa^2 Var[x_0 | x_t]. Each step multiplies what was
    lacking before by a^2, so that the sum below is exact, and of order 1 / N.
    """
    a, kappa = kernel(data, chain, config)
    lacking = data.marginal_variance(chain.alphas_bar[-1]) - 1  # x_T is N(0, 1)
    for t in reversed(range(len(chain))):
        hidden = data.posterior_variance(chain.alphas_bar[t])
        lacking = a[t] ** 2 * lacking + kappa[t] ** 2 * hidden
    return float(lacking)


def mean_error(data: Gaussian, chain: Schedule, config: SamplerConfig) -> float:
    """|E[x_0] - mu|: x_T starts at 0 and not at sqrt(abar_T) mu, and steps shrink it by a."""
    a, _ = kernel(data, chain, config)
    return abs(float(np.prod(a) * np.sqrt(chain.alphas_bar[-1]) * data.mean))


def exact_flow(data: Gaussian, chain: Schedule) -> tuple[float, float]:
    """Mean and standard deviation that solvers reach with ever more steps between the same ends.

    The flow keeps (x_t - c mu) / sqrt(V); the last prediction is E[x_0 | x_t] at the chain's t = 0.
    """
    signal, radius = np.sqrt(chain.alphas_bar), np.sqrt(data.marginal_variance(chain.alphas_bar))
    std = data.std**2 * signal[0] / radius[0] / radius[-1]
    return float(data.mean - std * signal[-1] * data.mean), float(std)


def rounding(chain: Schedule, prediction: Prediction) -> float:
    """Bound of float32's relative error after a whole chain.

    Four roundings of 2^-24 a step, in the worst case all in one direction. With eps-prediction the
    first x_0 is x_t / sqrt(abar_T) minus almost the same, and the next state keeps sqrt(abar) of
    the error.
    """
    bound = len(chain) * 2.0**-22
    if prediction == "eps":
        bound += 2.0**-22 * np.sqrt(chain.alphas_bar[-2] / chain.alphas_bar[-1])
    return bound


def moments(
    denoise: Denoise,
    chain: Schedule,
    config: SamplerConfig,
    prediction: Prediction,
    variance: Variance = "fixed_small",
    variance_table: np.ndarray | None = None,
    cond_fn: Gradient | None = None,
) -> tuple[float, float]:
    """Mean and variance of the samples of an affine denoiser, exact up to rounding.

    Row 0 gets no noise: its sample is the mean. Row t gets a unit of noise at step t, row N a unit
    of x_T: their differences to row 0 are the factors of independent standard normal variables.
    """
    steps = len(chain)
    noise = np.zeros((steps, steps + 1, 1), np.float32)
    noise[np.arange(1, steps), np.arange(1, steps), 0] = 1
    x_T = np.zeros((steps + 1, 1), np.float32)
    x_T[steps] = 1

    @jax.jit
    def run(x_T: Array, noise: Array) -> Array:
        return sample(
            denoise,
            chain,
            x_T.shape,
            config=config,
            prediction=prediction,
            variance=variance,
            variance_table=variance_table,
            cond_fn=cond_fn,
            x_T=x_T,
            noise=noise,
        )

    rows = np.asarray(run(jnp.asarray(x_T), jnp.asarray(noise)), np.float64)[:, 0]
    return float(rows[0]), float(np.sum((rows[1:] - rows[0]) ** 2))
