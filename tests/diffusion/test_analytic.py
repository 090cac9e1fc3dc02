"""Analytic-DPM's variances where Gamma is known: N(mu, s^2) has E|eps|^2 / d = (1 - abar) / V."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.gaussian import Gaussian
from unclip_jax.diffusion.analytic import analytic_variance, score_norms
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import SamplerConfig
from unclip_jax.diffusion.schedule import Schedule, make_schedule, respace, zero_terminal_snr
from unclip_jax.diffusion.spacing import spaced_timesteps
from unclip_jax.errors import UserError

TRAINING = make_schedule("cosine")
DATA = Gaussian(0.3, 0.6)


def exact_gamma(data: Gaussian, chain: Schedule) -> np.ndarray:
    return (1 - chain.alphas_bar) / data.marginal_variance(chain.alphas_bar)


@pytest.mark.parametrize("steps", [5, 50, 1000])
def test_variances_follow_from_the_norm_of_the_score(steps: int) -> None:
    """(1 - abar) / abar (1 - Gamma) is Var[x_0 | x_t]; at abar = 2e-9 it loses 9 of 16 digits."""
    chain = respace(TRAINING, spaced_timesteps(1000, steps))
    hidden = DATA.posterior_variance(chain.alphas_bar)
    previous = np.append(1.0, chain.alphas_bar[:-1])
    coefficient = np.sqrt(previous) * (1 - chain.alphas_bar / previous) / (1 - chain.alphas_bar)
    expected = chain.posterior_variance + coefficient**2 * hidden
    got = analytic_variance(chain, exact_gamma(DATA, chain))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    # The published form, which leaves x_0 out.
    beta = chain.betas[:-1]
    published = chain.posterior_variance[:-1] + beta**2 / (
        (1 - beta) * (1 - chain.alphas_bar[:-1])
    ) * (1 - exact_gamma(DATA, chain)[:-1])
    np.testing.assert_allclose(got[:-1], published, rtol=1e-6)


def test_variances_stay_in_their_bounds() -> None:
    """From nothing hidden to what Gamma = 0 means, or half the range of the data if less."""
    chain = respace(TRAINING, spaced_timesteps(1000, 20))
    small = chain.posterior_variance
    np.testing.assert_array_equal(analytic_variance(chain, np.full(20, 1.01)), small)
    unit = (1 - chain.alphas_bar) / chain.alphas_bar
    assert unit[0] < 0.5**2 < unit[-1]
    most = small + chain.posterior_mean_coef1**2 * np.minimum(unit, 0.5**2)
    np.testing.assert_allclose(analytic_variance(chain, np.zeros(20), limit=0.5), most, rtol=1e-12)
    noisy = exact_gamma(DATA, chain) + np.random.default_rng(0).normal(0, 0.01, 20)
    got = analytic_variance(chain, noisy, limit=0.5)
    assert np.all((got >= small) & (got <= most * (1 + 1e-12)))


def test_the_last_step_without_any_signal_takes_the_upper_bound() -> None:
    chain = zero_terminal_snr(TRAINING)
    got = analytic_variance(chain, exact_gamma(DATA, chain), limit=0.9)
    most = chain.posterior_variance[-1] + chain.posterior_mean_coef1[-1] ** 2 * 0.9**2
    assert np.isfinite(got).all() and got[-1] == pytest.approx(most, rel=1e-12)


def test_score_norms_are_estimated_from_data() -> None:
    """64 x 512 numbers: five standard errors of a mean of squares, and the same for every
    prediction, because the noise is the same."""
    chain = respace(TRAINING, [50, 300, 700, 999])
    rng = np.random.default_rng(0)
    x0 = jnp.asarray(DATA.mean + DATA.std * rng.standard_normal((64, 512)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 64)
    exact = exact_gamma(DATA, chain)
    found = {}
    for prediction in ("eps", "x0", "v"):
        kind: Prediction = prediction
        denoise = DATA.denoiser(TRAINING, kind)
        found[kind] = np.asarray(score_norms(denoise, chain, x0, keys, kind))
        assert found[kind].shape == (4,)
        # The residual is Gaussian: its square has the variance of a chi-square.
        # At the last step it is 9e-10, less than float32 can say below 1.
        rtol = 5 * np.sqrt(2 / x0.size)
        np.testing.assert_allclose(1 - found[kind], 1 - exact, rtol=rtol, atol=2.0**-23)
    np.testing.assert_allclose(1 - found["x0"], 1 - found["eps"], rtol=1e-5, atol=2.0**-23)
    np.testing.assert_allclose(1 - found["v"], 1 - found["eps"], rtol=1e-5, atol=2.0**-23)

    def learned(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        eps = DATA.denoiser(TRAINING, "eps")(xt, timestep)
        return jnp.concatenate([eps, 9 * jnp.ones_like(eps)], axis=-1)

    again = score_norms(learned, chain, x0, keys, "eps", "learned_range")
    np.testing.assert_allclose(again, found["eps"], rtol=1e-6)


def test_batches_can_be_averaged() -> None:
    """Rows have their own keys: two halves average to the whole."""
    chain = respace(TRAINING, [100, 500])
    x0 = jnp.asarray(np.random.default_rng(1).standard_normal((6, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 6)
    denoise = DATA.denoiser(TRAINING, "x0")
    halves = [score_norms(denoise, chain, x0[i : i + 3], keys[i : i + 3], "x0") for i in (0, 3)]
    whole = score_norms(denoise, chain, x0, keys, "x0")
    np.testing.assert_allclose((halves[0] + halves[1]) / 2, whole, rtol=1e-5)


@pytest.mark.parametrize("training", [make_schedule("cosine", 40), make_schedule("linear", 40)])
def test_a_strided_chain_takes_its_rows_of_the_training_chain(training: Schedule) -> None:
    """Same level, same timestep, same noise: one pass over all timesteps serves every chain."""
    x0 = jnp.asarray(np.random.default_rng(2).standard_normal((5, 8)), jnp.float32)
    keys = jax.random.split(jax.random.key(2), 5)

    def denoise(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        return 0.5 * xt + 0.01 * timestep[:, None]  # the timestep is read

    whole = np.asarray(score_norms(denoise, training, x0, keys, "x0"))
    for steps in (3, 7):
        chain = respace(training, spaced_timesteps(40, steps))
        strided = np.asarray(score_norms(denoise, chain, x0, keys, "x0"))
        np.testing.assert_allclose(strided, whole[chain.timesteps], rtol=1e-6)
        assert not np.allclose(strided, whole[:steps], rtol=1e-3)


def test_a_poor_network_hides_its_squared_error() -> None:
    """Far from E[x_0 | x_t], |eps|^2 / d is above 1 and would say that nothing is hidden."""
    chain = respace(make_schedule("cosine", 40), [2, 10, 20])
    x0 = jnp.asarray(np.random.default_rng(3).standard_normal((64, 32)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 64)
    gamma = np.asarray(score_norms(lambda xt, t: jnp.full_like(xt, 0.5), chain, x0, keys, "x0"))
    error = np.mean((np.asarray(x0, np.float64) - 0.5) ** 2)
    expected = chain.posterior_variance + chain.posterior_mean_coef1**2 * error
    np.testing.assert_allclose(analytic_variance(chain, gamma, limit=9.0), expected, rtol=1e-5)
    assert gamma[0] < 0


def test_only_ddpm_has_a_variance_to_choose() -> None:
    assert SamplerConfig(variance="analytic").method == "ddpm"
    for method in ("ddim", "dpm_solver", "unipc"):
        with pytest.raises(UserError, match=f"only ddpm reads it: {method}"):
            SamplerConfig(method=method, variance="analytic")
    with pytest.raises(UserError, match="choose trained or analytic"):
        SamplerConfig(variance="best")  # pyright: ignore[reportArgumentType]
