"""`cond_fn` with a likelihood that is known: the product of two Gaussians is one.

Data N(mu, s^2) seen through y ~ N(x_0, r^2) have the posterior N(m', s'^2) with

    1 / s'^2 = 1 / s^2 + 1 / r^2,    m' / s'^2 = mu / s^2 + y / r^2,

and p(y | x_t) is the density of N(E[x_0 | x_t], r^2 + Var[x_0 | x_t]) at y.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.gaussian import Gaussian, moments, rounding
from unclip_jax.diffusion.process import Prediction, Variance, extract
from unclip_jax.diffusion.samplers import Gradient, SamplerConfig, sample, sampling_schedule
from unclip_jax.diffusion.schedule import Schedule, make_schedule, zero_terminal_snr
from unclip_jax.errors import UserError

TRAINING = make_schedule("cosine")
PRIOR = Gaussian(0.7, 0.8)
Y, R = -0.4, 0.6


def product() -> Gaussian:
    precision = 1 / PRIOR.std**2 + 1 / R**2
    return Gaussian((PRIOR.mean / PRIOR.std**2 + Y / R**2) / precision, precision**-0.5)


def likelihood(training: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of d log p(y | x_t) / dx_t = a - b x_t, float64 [N]."""
    signal = np.sqrt(training.alphas_bar)
    gain = PRIOR.std**2 * signal / PRIOR.marginal_variance(training.alphas_bar)
    factor = gain / (R**2 + PRIOR.posterior_variance(training.alphas_bar))
    return factor * (Y - PRIOR.mean + gain * signal * PRIOR.mean), factor * gain


def gradient_of(training: Schedule) -> Gradient:
    constant, slope = likelihood(training)

    def gradient(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        return extract(constant, timestep, xt.ndim) - extract(slope, timestep, xt.ndim) * xt

    return gradient


def test_the_gradient_is_that_of_the_log_likelihood() -> None:
    level = TRAINING.alphas_bar[500]

    def log_p(x: float) -> float:
        gain = PRIOR.std**2 * np.sqrt(level) / PRIOR.marginal_variance(level)
        mean = PRIOR.mean + gain * (x - np.sqrt(level) * PRIOR.mean)
        return -((Y - mean) ** 2) / (2 * (R**2 + PRIOR.posterior_variance(level)))

    constant, slope = likelihood(TRAINING)
    for x in (-1.0, 0.3):
        slope_there = (log_p(x + 1e-5) - log_p(x - 1e-5)) / 2e-5
        assert constant[500] - slope[500] * x == pytest.approx(slope_there, rel=1e-8)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(method="ddim", num_steps=50, thresholding="none"),
        SamplerConfig(method="ddim", num_steps=50, eta=0.5, thresholding="none"),
        SamplerConfig(method="dpm_solver", num_steps=25, spacing="log_snr", thresholding="none"),
        SamplerConfig(method="unipc", num_steps=25, spacing="log_snr", thresholding="none"),
    ],
    ids=["ddim", "ddim eta", "dpm_solver", "unipc"],
)
def test_steering_the_prior_samples_the_product(
    config: SamplerConfig, prediction: Prediction
) -> None:
    """Prior and gradient together are the product's own score, so its own network does the same."""
    chain = sampling_schedule(TRAINING, config)
    steered = moments(
        PRIOR.denoiser(TRAINING, prediction),
        chain,
        config,
        prediction,
        cond_fn=gradient_of(TRAINING),
    )
    own = moments(product().denoiser(TRAINING, prediction), chain, config, prediction)
    relative = 6 * rounding(chain, prediction)  # two networks, and a line through two predictions
    assert steered[0] == pytest.approx(own[0], abs=relative)
    assert np.sqrt(steered[1]) == pytest.approx(np.sqrt(own[1]), rel=relative)
    # x_T starts at 0 and not at sqrt(abar_T) of the mean.
    assert steered[0] == pytest.approx(product().mean, abs=np.sqrt(chain.alphas_bar[-1]) + relative)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "table"])
def test_ddpm_moves_the_mean_by_variance_times_gradient(variance: str) -> None:
    """Against the recursion in float64, and, to the order of a step, against the product's mean."""
    config = SamplerConfig(num_steps=500, thresholding="none")
    chain = sampling_schedule(TRAINING, config)
    table = (chain.betas + chain.posterior_variance) / 2 if variance == "table" else None
    kind: Variance = "fixed_large" if variance == "fixed_large" else "fixed_small"
    mean, _ = moments(
        PRIOR.denoiser(TRAINING, "x0"), chain, config, "x0", kind, table, gradient_of(TRAINING)
    )
    variances = {
        "fixed_small": np.exp(chain.posterior_log_variance_clipped),
        "fixed_large": np.exp(chain.large_log_variance),
        "table": table,
    }[variance]
    constant, slope = (values[chain.timesteps] for values in likelihood(TRAINING))
    x = 0.0
    for t in range(len(chain) - 1, -1, -1):
        signal = np.sqrt(chain.alphas_bar[t])
        gain = PRIOR.std**2 * signal / PRIOR.marginal_variance(chain.alphas_bar[t])
        clean = PRIOR.mean + gain * (x - signal * PRIOR.mean)
        moved = variances[t] * (constant[t] - slope[t] * x)
        x = chain.posterior_mean_coef1[t] * clean + chain.posterior_mean_coef2[t] * x + moved
    assert mean == pytest.approx(x, abs=4 * rounding(chain, "x0"))
    assert mean == pytest.approx(product().mean, abs=0.03 * abs(product().mean - PRIOR.mean))


def test_learned_variances_steer_each_pixel() -> None:
    """learned_range at its lower end is fixed_small: the same noise gives the same samples."""
    config = SamplerConfig(num_steps=10, thresholding="none")
    chain = sampling_schedule(TRAINING, config)
    keys = jax.random.split(jax.random.key(0), 2)
    predict, cond_fn = PRIOR.denoiser(TRAINING, "v"), gradient_of(TRAINING)

    def learned(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        return jnp.concatenate([predict(xt, timestep), -jnp.ones_like(xt)], axis=-1)

    options = {"config": config, "prediction": "v", "keys": keys}
    plain = sample(predict, chain, (2, 3), cond_fn=cond_fn, **options)
    per_pixel = sample(learned, chain, (2, 3), variance="learned_range", cond_fn=cond_fn, **options)
    np.testing.assert_allclose(per_pixel, plain, rtol=0, atol=1e-5)
    assert np.abs(plain - sample(predict, chain, (2, 3), **options)).max() > 0.1


def test_the_gradient_is_taken_at_training_timesteps() -> None:
    seen: list[int] = []

    def gradient(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        seen.append(int(timestep[0]))
        return jnp.zeros_like(xt)

    config = SamplerConfig(method="unipc", num_steps=3, thresholding="none")
    chain = sampling_schedule(TRAINING, config)
    options = {"config": config, "prediction": "v", "x_T": jnp.ones((2, 3))}
    denoise = PRIOR.denoiser(TRAINING, "v")
    with jax.disable_jit():
        with_zero = sample(denoise, chain, (2, 3), cond_fn=gradient, **options)
    assert seen == [999, 500, 0]
    without = sample(denoise, chain, (2, 3), **options)
    np.testing.assert_allclose(with_zero, without, rtol=0, atol=1e-6)


def test_only_ddpm_can_be_steered_from_pure_noise() -> None:
    training = zero_terminal_snr(TRAINING)
    denoise, cond_fn = PRIOR.denoiser(training, "v"), gradient_of(training)
    keys = jax.random.split(jax.random.key(0), 2)
    for method in ("ddpm", "ddim", "unipc"):
        config = SamplerConfig(method=method, num_steps=5, thresholding="none")  # type: ignore[arg-type]
        chain = sampling_schedule(training, config)
        options = {"config": config, "prediction": "v", "keys": keys, "cond_fn": cond_fn}
        if method == "ddpm":
            assert np.isfinite(sample(denoise, chain, (2, 3), **options)).all()
        else:
            with pytest.raises(UserError, match="choose ddpm"):
                sample(denoise, chain, (2, 3), **options)


@pytest.mark.parametrize("method", ["ddim", "dpm_solver", "unipc"])
def test_a_strong_gradient_does_not_throw_pictures_out_of_their_range(method: str) -> None:
    """The first of 20 steps of a cosine chain multiplies it by 1,300."""
    config = SamplerConfig(method=method, num_steps=20)  # pyright: ignore[reportArgumentType]
    chain = sampling_schedule(make_schedule("cosine"), config)

    def steered(scale: float) -> np.ndarray:
        return np.asarray(
            sample(
                lambda xt, t: jnp.tanh(xt),
                chain,
                (2, 3),
                config=config,
                prediction="x0",
                keys=jax.random.split(jax.random.key(0), 2),
                cond_fn=lambda xt, t: jnp.full_like(xt, scale),
            )
        )

    assert np.abs(steered(5.0)).max() <= 1
    assert steered(0.3).mean() > steered(0.0).mean() + 0.001
