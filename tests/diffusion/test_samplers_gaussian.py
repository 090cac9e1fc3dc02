"""Every sampler with the optimal denoiser of Gaussian data, against the forms of gaussian.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.gaussian import (
    Gaussian,
    kernel,
    mean_error,
    missing_variance,
    moments,
    rounding,
)
from unclip_jax.diffusion.process import Prediction, extract
from unclip_jax.diffusion.samplers import SamplerConfig, sample, sampling_schedule
from unclip_jax.diffusion.schedule import (
    Schedule,
    ScheduleName,
    make_schedule,
    zero_terminal_snr,
)

TRAINING: dict[str, Schedule] = {
    "cosine": make_schedule("cosine"),
    "linear": make_schedule("linear"),
}
NARROW, UNIT, WIDE = Gaussian(0.7, 0.5), Gaussian(-0.3, 1.0), Gaussian(2.0, 3.0)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("num_steps", [50, "fast27", 1000])
@pytest.mark.parametrize(
    ("method", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0)]
)
@pytest.mark.parametrize(("name", "data"), [("cosine", WIDE), ("linear", NARROW)])
def test_mean_and_variance(
    name: ScheduleName,
    data: Gaussian,
    method: str,
    eta: float,
    num_steps: int | str,
    prediction: Prediction,
) -> None:
    """The mean is the data's; the variance lacks exactly what a chain of N steps cannot know."""
    training = TRAINING[name]
    config = SamplerConfig(method=method, num_steps=num_steps, eta=eta, thresholding="none")  # type: ignore[arg-type]
    chain = sampling_schedule(training, config)
    mean, variance = moments(data.denoiser(training, prediction), chain, config, prediction)
    relative = rounding(chain, prediction)
    size = abs(data.mean) + data.std
    assert abs(mean - data.mean) <= mean_error(data, chain, config) + relative * size
    expected = data.std**2 - missing_variance(data, chain, config)
    assert np.sqrt(variance) == pytest.approx(np.sqrt(expected), rel=relative)
    if num_steps == 1000:
        # What is missing is of order 1 / N: 0.5 % and 1.6 % of the variance here.
        assert 0.98 * data.std**2 < variance < data.std**2


@pytest.mark.parametrize("data", [NARROW, UNIT, WIDE])
def test_missing_variance_of_ddim_is_a_product_of_cosines(data: Gaussian) -> None:
    """A second derivation, for eta 0: x_t moves on the ellipse (std cos, sin) of the noise angle.

    A step from one angle of that ellipse to the next projects, so that the variance is multiplied
    by cos^2 of the angle between, and pi / 2 in N steps lose at most the sum of their squares.
    """
    config = SamplerConfig(method="ddim", num_steps=50, thresholding="none")
    chain = sampling_schedule(TRAINING["cosine"], config)
    levels = np.append(1.0, chain.alphas_bar)
    angles = np.arctan2(np.sqrt(1 - levels), data.std * np.sqrt(levels))
    turns = np.diff(angles)
    start = 1 / data.marginal_variance(chain.alphas_bar[-1])
    expected = data.std**2 * start * np.prod(np.cos(turns) ** 2)
    lacking = missing_variance(data, chain, config)
    assert data.std**2 - lacking == pytest.approx(expected, rel=1e-9)
    assert 0 < lacking / data.std**2 <= np.sum(turns**2) + 1e-6


def exact_table(data: Gaussian, chain: Schedule) -> np.ndarray:
    """The best isotropic variances (Bao et al. 2022): posterior + coef1^2 E[Var(x_0 | x_t)]."""
    hidden = data.posterior_variance(chain.alphas_bar)
    return chain.posterior_variance + chain.posterior_mean_coef1**2 * hidden


def exact_variance(data: Gaussian, chain: Schedule) -> float:
    """Variance of samples whose kernels are all exact: only the last step, a mean, lacks some."""
    a, _ = kernel(data, chain, SamplerConfig(method="ddpm"))
    start = data.marginal_variance(chain.alphas_bar[-1]) - 1
    lacking = data.posterior_variance(chain.alphas_bar[0]) + np.prod(a) ** 2 * start
    return float(data.std**2 - lacking)


@pytest.mark.parametrize("data", [NARROW, UNIT, WIDE])
def test_variance_table_is_exact_for_any_number_of_steps(data: Gaussian) -> None:
    training = TRAINING["cosine"]
    config = SamplerConfig(num_steps=10, thresholding="none")
    chain = sampling_schedule(training, config)
    denoise = data.denoiser(training, "x0")
    table = exact_table(data, chain)
    _, variance = moments(denoise, chain, config, "x0", variance_table=table)
    assert variance == pytest.approx(exact_variance(data, chain), rel=2 * rounding(chain, "x0"))


@pytest.mark.parametrize("num_steps", [10, 50])
def test_fixed_large_is_exact_for_unit_variance(num_steps: int) -> None:
    """For N(mu, 1) the reverse kernel has variance beta (Ho et al. 2020, section 3.2)."""
    training = TRAINING["cosine"]
    config = SamplerConfig(num_steps=num_steps, thresholding="none")
    chain = sampling_schedule(training, config)
    _, variance = moments(UNIT.denoiser(training, "x0"), chain, config, "x0", "fixed_large")
    assert variance == pytest.approx(exact_variance(UNIT, chain), rel=2 * rounding(chain, "x0"))


def test_learned_range_reaches_the_exact_variance() -> None:
    """For a standard deviation below 1 the best variance lies between the bounds of the range."""
    training = TRAINING["cosine"]
    config = SamplerConfig(num_steps=20, thresholding="none")
    chain = sampling_schedule(training, config)
    low, high = chain.posterior_log_variance_clipped[1:], np.log(chain.betas[1:])
    fraction = (np.log(exact_table(NARROW, chain)[1:]) - low) / (high - low)
    assert np.all((fraction > 0) & (fraction < 1))
    values = np.zeros(1000)
    values[chain.timesteps[1:]] = 2 * fraction - 1
    predict = NARROW.denoiser(training, "v")

    def denoise(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        value = jnp.broadcast_to(extract(values, timestep, xt.ndim), xt.shape)
        return jnp.concatenate([predict(xt, timestep), value], axis=-1)

    _, variance = moments(denoise, chain, config, "v", "learned_range")
    # Variances are exponentials of float32 logarithms near -10: 4e-6 instead of 6e-8 each.
    expected = exact_variance(NARROW, chain)
    assert variance == pytest.approx(expected, rel=2 * rounding(chain, "v") + 4e-6)


def test_moments_of_keyed_noise() -> None:
    """With noise from keys, 65,536 samples have the same moments to 5 standard errors."""
    training = TRAINING["cosine"]
    config = SamplerConfig(num_steps=25, thresholding="none")
    chain = sampling_schedule(training, config)
    keys = jax.random.split(jax.random.key(0), 64)

    @jax.jit
    def run(keys: jax.Array) -> jax.Array:
        denoise = NARROW.denoiser(training, "eps")
        return sample(denoise, chain, (64, 1024), config=config, prediction="eps", keys=keys)

    samples = np.asarray(run(keys), np.float64)
    expected = NARROW.std**2 - missing_variance(NARROW, chain, config)
    assert abs(samples.mean() - NARROW.mean) < 5 * np.sqrt(expected / samples.size)
    assert abs(samples.var() / expected - 1) < 5 * np.sqrt(2 / samples.size)
    # Rows and columns are independent: correlations of 1,024 and of 64 pairs.
    assert np.abs(np.corrcoef(samples)[np.triu_indices(64, 1)]).max() < 5 / np.sqrt(1024)


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_a_chain_that_starts_from_pure_noise(method: str, prediction: Prediction) -> None:
    """With zero terminal SNR x_T is what sampling starts from: nothing is left of the mean's error,
    and the variance lacks what it has to."""
    training = zero_terminal_snr(TRAINING["linear"])
    config = SamplerConfig(method=method, num_steps=20, thresholding="none")  # type: ignore[arg-type]
    chain = sampling_schedule(training, config)
    assert chain.alphas_bar[-1] == 0 and mean_error(WIDE, chain, config) == 0
    mean, variance = moments(WIDE.denoiser(training, prediction), chain, config, prediction)
    relative = rounding(chain, prediction)
    assert mean == pytest.approx(WIDE.mean, abs=relative * (WIDE.mean + WIDE.std))
    expected = WIDE.std**2 - missing_variance(WIDE, chain, config)
    assert np.sqrt(variance) == pytest.approx(np.sqrt(expected), rel=relative)
