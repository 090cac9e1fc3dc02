"""From a sample to its noise and back, approximately and exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.gaussian import Gaussian, rounding
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import (
    Denoise,
    SamplerConfig,
    ddim_invert,
    sample,
    sampling_schedule,
)
from unclip_jax.diffusion.schedule import Schedule, ScheduleName, make_schedule

TRAINING: dict[str, Schedule] = {
    "cosine": make_schedule("cosine"),
    "linear": make_schedule("linear"),
}


def there_and_back(
    denoise: Denoise,
    training: Schedule,
    x0: np.ndarray,
    config: SamplerConfig,
    prediction: Prediction,
) -> tuple[np.ndarray, np.ndarray]:
    """x_T, and what DDIM draws from it."""
    chain = sampling_schedule(training, config)

    @jax.jit
    def both(x0: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_T = ddim_invert(denoise, chain, x0, config=config, prediction=prediction)
        again = sample(denoise, chain, x0.shape, config=config, prediction=prediction, x_T=x_T)
        return x_T, again

    x_T, again = both(jnp.asarray(x0, jnp.float32))
    return np.asarray(x_T, np.float64), np.asarray(again, np.float64)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_inversion_then_sampling_returns_the_start(prediction: Prediction) -> None:
    """Both directions are affine, so that the reconstruction is known; its error is of order 1 / N.

    x_t moves on the ellipse (std cos, sin) of the noise angle. A step between two angles multiplies
    the distance to the mean by the cosine of the turn and by the ratio of the radii, both ways. The
    radii cancel, but for the clean picture that is taken for one at abar_0, and the last step to
    abar = 0 that sampling takes for abar_{N-1}.
    """
    data = Gaussian(0.2, 0.5)
    training = TRAINING["cosine"]
    config = SamplerConfig(method="ddim", num_steps=250, thresholding="none")
    chain = sampling_schedule(training, config)
    denoise = data.denoiser(training, prediction)
    start = np.linspace(-0.8, 1.2, 9, dtype=np.float32)[:, None]

    x_T, again = there_and_back(denoise, training, start, config, prediction)

    levels = np.concatenate([[1.0], chain.alphas_bar, [0.0]])
    signal, noise = np.sqrt(levels), np.sqrt(1 - levels)
    radius = np.hypot(data.std * signal, noise)
    turns = np.diff(np.arctan2(noise, data.std * signal))
    up = np.prod(np.cos(turns[1:])) * radius[-1] / radius[1]
    down = np.prod(np.cos(turns[:-1])) * radius[0] / radius[-2]
    expected_T = up * (start - signal[1] * data.mean)
    expected = data.mean + down * (expected_T - signal[-2] * data.mean)
    tolerance = 2 * rounding(chain, prediction)
    np.testing.assert_allclose(x_T, expected_T, rtol=0, atol=tolerance)
    np.testing.assert_allclose(again, expected, rtol=0, atol=tolerance)

    # The cosines lose at most the sum of the squared turns; the rest are the two mismatched ends.
    lost = np.sum(turns**2) + abs(radius[0] / radius[1] / radius[-2] - 1)
    shift = (1 - signal[1]) + signal[-2]
    bound = lost * np.abs(start - data.mean) + shift * abs(data.mean) + tolerance
    assert lost < 0.015
    assert np.all(np.abs(again - start) <= bound)


@pytest.mark.parametrize("data", [Gaussian(0.7, 0.5), Gaussian(2.0, 3.0)])
@pytest.mark.parametrize(
    ("name", "prediction"), [("cosine", "x0"), ("cosine", "v"), ("linear", "eps"), ("linear", "v")]
)
def test_iterations_make_the_inversion_exact(
    name: ScheduleName, prediction: Prediction, data: Gaussian
) -> None:
    """To 1e-4, three calls of the network a step; the reversed Euler step is 30 times worse."""
    training = TRAINING[name]
    start = data.mean + data.std * np.linspace(-2, 2, 9)[:, None]
    denoise = data.denoiser(training, prediction)
    errors = {}
    for iterations in (0, 3):
        config = SamplerConfig(
            method="ddim", num_steps=50, thresholding="none", iterations=iterations
        )
        _, again = there_and_back(denoise, training, start, config, prediction)
        errors[iterations] = np.abs(again - start).max()
    assert errors[3] < 1e-4
    assert errors[0] > 30 * errors[3]


def test_the_exact_inverse_is_the_noise_that_was_drawn() -> None:
    """Sampling is affine here, so that x_T follows from the sample by one division."""
    data, training = Gaussian(0.2, 0.5), TRAINING["cosine"]
    config = SamplerConfig(method="ddim", num_steps=25, thresholding="none", iterations=6)
    chain = sampling_schedule(training, config)
    denoise = data.denoiser(training, "v")
    x_T = jnp.asarray(np.random.default_rng(0).standard_normal((8, 5)), jnp.float32)
    options = {"config": config, "prediction": "v"}
    x0 = jax.jit(lambda x: sample(denoise, chain, x.shape, x_T=x, **options))(x_T)
    found = jax.jit(lambda x: ddim_invert(denoise, chain, x, **options))(x0)
    # What a sample has kept of x_T is its standard deviation of about 0.5.
    np.testing.assert_allclose(found, x_T, rtol=0, atol=4 * rounding(chain, "v") / data.std)


def test_a_network_that_is_not_linear_is_inverted_too() -> None:
    def denoise(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        phase = timestep.astype(jnp.float32)[:, None] / 300
        return jnp.sin(xt + xt.mean(axis=1, keepdims=True) + phase)

    start = np.random.default_rng(1).uniform(-1, 1, (4, 6))
    errors = []
    for iterations in (0, 2, 8):
        config = SamplerConfig(
            method="ddim", num_steps=50, thresholding="none", iterations=iterations
        )
        _, again = there_and_back(denoise, TRAINING["cosine"], start, config, "v")
        errors.append(np.abs(again - start).max())
    assert errors[0] > 10 * errors[1] > 10 * errors[2]
    assert errors[2] < 1e-4
