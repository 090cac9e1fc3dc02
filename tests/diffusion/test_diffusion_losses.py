"""The training losses against closed forms, and where their gradients flow."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.losses import diffusion_loss, mse_loss, vb_terms
from unclip_jax.diffusion.process import Prediction, posterior, q_sample, target
from unclip_jax.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("cosine")
T = jnp.array([0, 1, 400, 999])


def batch() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pixels x0 as uint8 pictures have them, noise, and x_t at the timesteps T."""
    rng = np.random.default_rng(0)
    x0 = jnp.asarray(rng.integers(0, 256, (4, 2, 2, 3)) / 127.5 - 1, jnp.float32)
    noise = jnp.asarray(rng.standard_normal(x0.shape), jnp.float32)
    return x0, noise, q_sample(SCHEDULE, x0, T, noise)


def test_mse_is_a_mean_over_each_row() -> None:
    a = jnp.array([[[1.0, 2.0]], [[0.0, 0.0]]], jnp.bfloat16)
    loss = mse_loss(a, jnp.array([[[0.0, 0.0]], [[3.0, 1.0]]]))
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, [2.5, 5.0])


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_fixed_variance_loss_is_the_squared_error(prediction: Prediction) -> None:
    x0, noise, xt = batch()
    exact = target(SCHEDULE, prediction, x0, noise, T)
    for variance in ("fixed_small", "fixed_large"):
        options = {"prediction": prediction, "variance": variance}
        loss, metrics = diffusion_loss(SCHEDULE, exact + 0.5, x0, xt, T, noise, **options)
        # The offset is added in float32 to values up to 4.
        np.testing.assert_allclose(loss, 0.25, rtol=1e-6)
        assert set(metrics) == {"mse"}


def test_vb_is_the_kl_of_two_gaussians_in_bits() -> None:
    x0, _, xt = batch()
    rng = np.random.default_rng(1)
    mean = rng.standard_normal(x0.shape)
    log_variance = rng.uniform(-3, 0, x0.shape)
    got = vb_terms(SCHEDULE, x0, xt, T, jnp.float32(mean), jnp.float32(log_variance))
    true_mean, _ = posterior(SCHEDULE, x0, xt, T)
    true_variance = SCHEDULE.posterior_variance[np.asarray(T)][:, None, None, None]
    variance = np.exp(log_variance)
    with np.errstate(divide="ignore"):
        kl = np.log(variance / true_variance) / 2 - 0.5
    kl = kl + (true_variance + (np.asarray(true_mean, np.float64) - mean) ** 2) / (2 * variance)
    bits = kl.reshape(4, -1).mean(axis=1) / math.log(2)
    np.testing.assert_allclose(got[1:], bits[1:], rtol=1e-5)


def test_vb_of_the_true_kernel_is_zero() -> None:
    """The exact prediction with variance values -1 is the posterior itself."""
    x0, noise, xt = batch()
    output = jnp.concatenate([x0, -jnp.ones_like(x0)], axis=-1)
    options = {"prediction": "x0", "variance": "learned_range"}
    loss, metrics = diffusion_loss(SCHEDULE, output, x0, xt, T, noise, **options)
    np.testing.assert_array_equal(metrics["mse"], 0)
    np.testing.assert_allclose(metrics["vb"][1:], 0, atol=1e-6)
    np.testing.assert_array_equal(loss, metrics["vb"])


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


@pytest.mark.parametrize("scale", [0.002, 0.01, 0.3])
def test_vb_at_zero_is_the_likelihood_of_the_pixel(scale: float) -> None:
    """-log2 of a Gaussian's mass in the pixel's bin, against the exact distribution function.

    The tanh approximation is off by delta <= 3e-4 at each edge, so that the mass p is off by
    2 delta and its logarithm by -log(1 - 2 delta / p) at most.
    """
    delta = 3e-4
    pixels = np.array([0, 1, 77, 128, 254, 255]) / 127.5 - 1
    for offset in (0.0, 0.5 * scale, -scale):
        for pixel in pixels:
            low = 0.0 if pixel < -0.999 else normal_cdf((-1 / 255 - offset) / scale)
            high = 1.0 if pixel > 0.999 else normal_cdf((1 / 255 - offset) / scale)
            x0 = jnp.full((1, 1), pixel, jnp.float32)
            mean = jnp.full((1, 1), pixel + offset, jnp.float32)
            log_variance = jnp.full((1, 1), 2 * math.log(scale), jnp.float32)
            t = jnp.zeros(1, jnp.int32)
            got = float(vb_terms(SCHEDULE, x0, x0, t, mean, log_variance)[0]) * math.log(2)
            bound = -math.log(1 - 2 * delta / (high - low))
            # Beside the approximation, pixels near 1 and the bin's edges are rounded to 6e-8.
            rounding = 1e-6 / scale
            assert got == pytest.approx(-math.log(high - low), abs=bound + rounding)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_bound_trains_only_the_variance(prediction: Prediction) -> None:
    x0, noise, xt = batch()
    rng = np.random.default_rng(2)
    output = jnp.asarray(rng.standard_normal((4, 2, 2, 6)), jnp.float32)

    def hybrid(output: jax.Array) -> jax.Array:
        options = {"prediction": prediction, "variance": "learned_range"}
        return diffusion_loss(SCHEDULE, output, x0, xt, T, noise, **options)[0].sum()

    def simple(output: jax.Array) -> jax.Array:
        options = {"prediction": prediction, "variance": "fixed_small"}
        return diffusion_loss(SCHEDULE, output[..., :3], x0, xt, T, noise, **options)[0].sum()

    gradient, of_mse = jax.grad(hybrid)(output), jax.grad(simple)(output)
    np.testing.assert_array_equal(gradient[..., :3], of_mse[..., :3])
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient[1:, ..., 3:]).max(axis=(1, 2, 3)) > 0).all()


def test_the_bound_is_weighted_by_a_thousandth_of_the_chain() -> None:
    short = make_schedule("cosine", 100)
    rng = np.random.default_rng(3)
    x0, noise = (jnp.asarray(rng.standard_normal((2, 5)), jnp.float32) for _ in range(2))
    t = jnp.array([3, 60])
    xt = q_sample(short, x0, t, noise)
    output = jnp.asarray(rng.standard_normal((2, 10)), jnp.float32)
    options = {"prediction": "eps", "variance": "learned_range"}
    loss, metrics = diffusion_loss(short, output, x0, xt, t, noise, **options)
    np.testing.assert_allclose(loss, metrics["mse"] + 0.1 * metrics["vb"], rtol=1e-6)
    assert (metrics["vb"] > 0).all()
