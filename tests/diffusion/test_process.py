"""The forward process and its posterior against Bayes' rule, and eps / x0 / v there and back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.process import (
    Prediction,
    eps_from_v,
    eps_from_x0,
    extract,
    model_log_variance,
    posterior,
    q_sample,
    split_variance,
    target,
    to_eps,
    to_x0,
    v_from_x0_eps,
    x0_from_eps,
    x0_from_v,
)
from unclip_jax.diffusion.schedule import Schedule, make_schedule, respace, zero_terminal_snr
from unclip_jax.diffusion.spacing import spaced_timesteps
from unclip_jax.errors import UserError

TRAINING = make_schedule("cosine")
CHAINS = {"training": TRAINING, "25 steps": respace(TRAINING, spaced_timesteps(1000, 25))}
ULP = 2.0**-23


def draws(seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(-1, 1, shape).astype(np.float32),
        rng.standard_normal(shape).astype(np.float32),
    )


def test_extract_casts_once_and_broadcasts() -> None:
    values = extract(TRAINING.alphas_bar, jnp.array([0, 999]), 4)
    assert values.shape == (2, 1, 1, 1) and values.dtype == jnp.float32
    np.testing.assert_array_equal(values.ravel(), np.float32(TRAINING.alphas_bar[[0, 999]]))


@pytest.mark.parametrize("shape", [(5,), (2, 2, 3)])
def test_q_sample_is_its_closed_form(shape: tuple[int, ...]) -> None:
    x0, noise = draws(0, 3, *shape)
    t = np.array([0, 500, 999])
    level = TRAINING.alphas_bar[t].reshape(-1, *(1,) * len(shape))
    expected = np.sqrt(level) * x0 + np.sqrt(1 - level) * noise
    got = q_sample(TRAINING, jnp.asarray(x0), jnp.asarray(t), jnp.asarray(noise))
    np.testing.assert_allclose(got, expected, rtol=0, atol=8 * ULP)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_posterior_equals_bayes_rule(chain: Schedule) -> None:
    """q(x_{t-1} | x_0) times q(x_t | x_{t-1}), two Gaussians in x_{t-1}: precisions add."""
    t = np.arange(1, len(chain))
    x0, xt = draws(1, len(t), 4)
    previous, beta = chain.alphas_bar[t - 1][:, None], chain.betas[t][:, None]
    precision = 1 / (1 - previous) + (1 - beta) / beta
    mean = (np.sqrt(previous) * x0 / (1 - previous) + np.sqrt(1 - beta) * xt / beta) / precision
    got_mean, got_variance = posterior(chain, jnp.asarray(x0), jnp.asarray(xt), jnp.asarray(t))
    assert got_variance.shape == (len(t), 1)
    np.testing.assert_allclose(got_mean, mean, rtol=0, atol=16 * ULP)
    np.testing.assert_allclose(got_variance, 1 / precision, rtol=4 * ULP)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_posterior_at_zero_is_x0_without_variance(chain: Schedule) -> None:
    x0, xt = draws(2, 2, 3, 3, 1)
    mean, variance = posterior(chain, jnp.asarray(x0), jnp.asarray(xt), jnp.zeros(2, jnp.int32))
    np.testing.assert_array_equal(mean, x0)
    assert variance.shape == (2, 1, 1, 1) and not variance.any()


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_targets_convert_back(chain: Schedule, prediction: Prediction) -> None:
    """What `target` asks for is turned into the x_0 and eps that were drawn.

    Rounding of x_t is divided by sqrt(abar) or sqrt(1 - abar) where the prediction is the other
    quantity; v is a rotation and magnifies nothing.
    """
    t = np.arange(len(chain))
    x0, noise = draws(3, len(t), 4)
    x0_, noise_, t_ = jnp.asarray(x0), jnp.asarray(noise), jnp.asarray(t)
    xt = q_sample(chain, x0_, t_, noise_)
    output = target(chain, prediction, x0_, noise_, t_)
    scale = 8 * ULP * np.abs(noise).max()
    signal = chain.sqrt_alphas_bar[:, None] if prediction == "eps" else 1.0
    rest = chain.sqrt_one_minus_alphas_bar[:, None] if prediction == "x0" else 1.0
    got_x0 = np.asarray(to_x0(chain, prediction, output, xt, t_))
    got_eps = np.asarray(to_eps(chain, prediction, output, xt, t_))
    assert np.all(np.abs(got_x0 - x0) <= scale / signal)
    assert np.all(np.abs(got_eps - noise) <= scale / rest)


def test_conversions_by_name_agree_with_each_other() -> None:
    x0, eps = draws(4, 3, 2, 2, 3)
    x0_, eps_, t = jnp.asarray(x0), jnp.asarray(eps), jnp.array([10, 500, 900])
    xt = q_sample(TRAINING, x0_, t, eps_)
    v = v_from_x0_eps(TRAINING, x0_, eps_, t)
    close = {"rtol": 0, "atol": 2e-5}  # 1 / sqrt(abar_900) = 6.6, 1 / sqrt(1 - abar_10) = 38
    np.testing.assert_allclose(x0_from_v(TRAINING, v, xt, t), x0, **close)
    np.testing.assert_allclose(eps_from_v(TRAINING, v, xt, t), eps, **close)
    np.testing.assert_allclose(x0_from_eps(TRAINING, eps_, xt, t), x0, **close)
    np.testing.assert_allclose(eps_from_x0(TRAINING, x0_, xt, t), eps, **close)


def test_low_precision_outputs_become_float32() -> None:
    output = jnp.ones((1, 2), jnp.bfloat16)
    for prediction in ("eps", "x0", "v"):
        xt, t = jnp.ones((1, 2)), jnp.zeros(1, jnp.int32)
        assert to_x0(TRAINING, prediction, output, xt, t).dtype == jnp.float32
        assert to_eps(TRAINING, prediction, output, xt, t).dtype == jnp.float32


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_learned_range_runs_from_the_posterior_variance_to_beta(chain: Schedule) -> None:
    t = jnp.arange(len(chain))
    ones = jnp.ones((len(chain), 3))

    def learned(value: float) -> np.ndarray:
        return np.asarray(model_log_variance(chain, "learned_range", value * ones, t, 2))

    low, middle, high = learned(-1.0), learned(0.0), learned(1.0)
    assert low.shape == (len(chain), 3)
    # Logarithms reach -10.7 and are sums of two rounded products.
    close = {"rtol": 4 * ULP, "atol": 4 * ULP}
    np.testing.assert_allclose(np.exp(low[1:, 0]), chain.posterior_variance[1:], rtol=4e-6)
    np.testing.assert_allclose(np.exp(high[:, 0]), chain.betas, rtol=4e-6)
    np.testing.assert_allclose(middle, (low + high) / 2, **close)
    assert low[0, 0] == low[1, 0]


def test_fixed_variances() -> None:
    t = jnp.arange(1, 1000)
    small = model_log_variance(TRAINING, "fixed_small", None, t, 3)
    large = model_log_variance(TRAINING, "fixed_large", None, t, 3)
    assert small.shape == large.shape == (999, 1, 1)
    np.testing.assert_allclose(np.exp(small.ravel()), TRAINING.posterior_variance[1:], rtol=4e-6)
    np.testing.assert_allclose(np.exp(large.ravel()), TRAINING.betas[1:], rtol=4e-6)
    with pytest.raises(ValueError, match="learned_range"):
        model_log_variance(TRAINING, "learned_range", None, t, 3)


def test_split_variance_takes_the_prediction_first() -> None:
    prediction, values = split_variance(jnp.arange(6.0).reshape(1, 6))
    assert list(prediction[0]) == [0, 1, 2] and list(values[0]) == [3, 4, 5]


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_targets_convert_back_without_any_signal(prediction: Prediction) -> None:
    """At abar = 0, x_t is the noise and says nothing of x_0, which the output alone gives."""
    schedule = zero_terminal_snr(TRAINING)
    x0, noise = draws(5, 1, 4)
    x0_, noise_, t = jnp.asarray(x0), jnp.asarray(noise), jnp.array([999])
    xt = q_sample(schedule, x0_, t, noise_)
    np.testing.assert_array_equal(xt, noise)
    output = target(schedule, prediction, x0_, noise_, t)
    np.testing.assert_array_equal(to_x0(schedule, prediction, output, xt, t), x0)
    np.testing.assert_array_equal(to_eps(schedule, prediction, output, xt, t), noise)
    mean, variance = posterior(schedule, x0_, xt, t)
    assert np.isfinite(mean).all() and np.isfinite(variance).all()


def test_eps_is_refused_where_no_signal_is_left() -> None:
    schedule = zero_terminal_snr(TRAINING)
    x0, noise = (jnp.asarray(array) for array in draws(6, 1, 4))
    with pytest.raises(UserError, match="choose v or x0"):
        to_x0(schedule, "eps", noise, noise, jnp.array([999]))
    with pytest.raises(UserError, match="choose v or x0"):
        target(schedule, "eps", x0, noise, jnp.array([3]))
    shorter = respace(schedule, range(999))
    assert np.isfinite(to_x0(shorter, "eps", noise, noise, jnp.array([998]))).all()
