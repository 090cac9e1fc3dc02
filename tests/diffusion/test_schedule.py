"""Schedules against closed forms in extended precision, and against frozen PyTorch tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unclip_jax.diffusion.schedule import make_schedule, respace, zero_terminal_snr
from unclip_jax.diffusion.spacing import spaced_timesteps
from unclip_jax.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


def test_cosine_equals_its_closed_form() -> None:
    schedule = make_schedule("cosine")
    u = np.arange(1001, dtype=np.longdouble) / 1000
    level = np.cos((u + np.longdouble("0.008")) / np.longdouble("1.008") * np.arccos(-1.0) / 2) ** 2
    alphas_bar = level[1:] / level[0]
    # Only the last beta reaches the cap, and abar is the product of the capped betas.
    alphas_bar[-1] = alphas_bar[-2] * np.longdouble("0.001")
    betas = 1 - alphas_bar / np.append(np.longdouble(1), alphas_bar[:-1])
    np.testing.assert_allclose(schedule.alphas_bar, alphas_bar.astype(float), rtol=1e-12)
    np.testing.assert_allclose(schedule.betas, betas.astype(float), rtol=0, atol=1e-12)
    assert schedule.alphas_bar[-1] == pytest.approx(2.428767e-09, rel=1e-6)


def test_linear_equals_its_closed_form() -> None:
    schedule = make_schedule("linear", 100)
    betas = [10 * (1e-4 + (0.02 - 1e-4) * i / 99) for i in range(100)]
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-12)
    alphas_bar = np.cumprod(1 - np.array(betas, dtype=np.longdouble))
    np.testing.assert_allclose(schedule.alphas_bar, alphas_bar.astype(float), rtol=1e-12)


@pytest.mark.parametrize(("name", "steps"), [("cosine", 1000), ("linear", 100)])
def test_tables_equal_pytorch_tables_to_the_last_bit_of_float32(name: str, steps: int) -> None:
    """DALLE2-pytorch computes in float64 and casts each table once, as `extract` does."""
    schedule = make_schedule(name, steps)  # type: ignore[arg-type]
    golden = np.load(GOLDEN / f"schedule_{name}_{steps}.npz")
    tables = {
        "betas": schedule.betas,
        "alphas_cumprod": schedule.alphas_bar,
        "alphas_cumprod_prev": schedule.alphas_bar_prev,
        "sqrt_alphas_cumprod": schedule.sqrt_alphas_bar,
        "sqrt_one_minus_alphas_cumprod": schedule.sqrt_one_minus_alphas_bar,
        "sqrt_recip_alphas_cumprod": schedule.sqrt_recip_alphas_bar,
        "sqrt_recipm1_alphas_cumprod": schedule.sqrt_recipm1_alphas_bar,
        "posterior_variance": schedule.posterior_variance,
        "posterior_mean_coef1": schedule.posterior_mean_coef1,
        "posterior_mean_coef2": schedule.posterior_mean_coef2,
    }
    for key, table in tables.items():
        # One unit in the last place: libm and torch may round a cosine differently.
        np.testing.assert_array_max_ulp(np.float32(table), golden[key], maxulp=1)
    # At t = 0 that code has log 1e-20, ours is ADM's: the entry of t = 1.
    clipped = schedule.posterior_log_variance_clipped
    expected = golden["posterior_log_variance_clipped"][1:]
    np.testing.assert_array_max_ulp(np.float32(clipped[1:]), expected, maxulp=1)
    assert clipped[0] == clipped[1]


def test_derived_tables_at_the_ends() -> None:
    schedule = make_schedule("cosine")
    assert schedule.alphas_bar_prev[0] == 1 and schedule.posterior_variance[0] == 0
    assert schedule.posterior_mean_coef2[0] == 0
    assert schedule.posterior_mean_coef1[0] == pytest.approx(1, abs=1e-11)
    assert schedule.large_log_variance[0] == schedule.posterior_log_variance_clipped[1]
    np.testing.assert_array_equal(schedule.large_log_variance[1:], np.log(schedule.betas[1:]))
    assert np.all(np.diff(schedule.alphas_bar) < 0)
    assert np.all(schedule.posterior_variance <= schedule.betas)
    one = respace(schedule, [999])
    assert np.isfinite(one.posterior_log_variance_clipped).all()


def test_schedule_is_hashable_and_read_only() -> None:
    schedule = make_schedule("linear")
    assert hash(schedule) == hash(schedule) and schedule != make_schedule("linear")
    with pytest.raises(ValueError, match="read-only"):
        schedule.betas[0] = 1


def test_respacing_keeps_levels_and_recomputes_betas() -> None:
    training = make_schedule("cosine")
    chain = respace(training, spaced_timesteps(1000, 25))
    np.testing.assert_array_equal(chain.alphas_bar, training.alphas_bar[chain.timesteps])
    # A beta near 1 leaves few digits to 1 - beta, which is 6e-7 in the last step.
    rounding = 2.0**-52 * np.cumsum(1 / (1 - chain.betas))
    error = np.abs(np.cumprod(1 - chain.betas) / chain.alphas_bar - 1)
    assert np.all(error <= rounding) and rounding[-2] < 1e-12
    assert len(chain) == 25 and chain.num_train_timesteps == 1000
    again = respace(chain, [0, 12, 24])
    assert list(again.timesteps) == [0, 500, 999] and again.num_train_timesteps == 1000
    whole = respace(training, range(1000))
    np.testing.assert_allclose(whole.betas, training.betas, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [[], [3, 3], [5, 4], [-1, 3], [0, 1000]])
def test_respacing_refuses_impossible_steps(steps: list[int]) -> None:
    with pytest.raises(UserError, match="give"):
        respace(make_schedule("cosine"), steps)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(UserError, match="21 or more"):
        make_schedule("linear", 20)
    make_schedule("linear", 21)
    with pytest.raises(UserError, match="1 or more"):
        make_schedule("cosine", 0)
    with pytest.raises(UserError, match="choose cosine or linear"):
        make_schedule("quadratic")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_log_snr_is_half_the_log_of_the_ratio(name: str) -> None:
    schedule = make_schedule(name)  # type: ignore[arg-type]
    level = schedule.alphas_bar.astype(np.longdouble)
    expected = np.log(level / (1 - level)) / 2
    np.testing.assert_allclose(schedule.log_snr, expected.astype(float), rtol=1e-11)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_zero_terminal_snr_moves_and_stretches_the_signal(name: str) -> None:
    """Linear in sqrt(abar): the first value stays, the last is 0, ratios of differences stay."""
    before = make_schedule(name)  # type: ignore[arg-type]
    after = zero_terminal_snr(before)
    assert after.alphas_bar[-1] == 0 and after.betas[-1] == 1
    assert after.alphas_bar[0] == pytest.approx(before.alphas_bar[0], rel=1e-15)
    old, new = np.sqrt(before.alphas_bar), np.sqrt(after.alphas_bar)
    shares = (old[:-1] - old[1:]) / (old[0] - old[-1])
    np.testing.assert_allclose((new[:-1] - new[1:]) / new[0], shares, rtol=0, atol=1e-15)
    # Betas as Lin et al. make them from the products.
    alphas = after.alphas_bar[1:] / after.alphas_bar[:-1]
    np.testing.assert_allclose(after.betas, 1 - np.append(after.alphas_bar[0], alphas), atol=1e-15)
    assert list(after.timesteps) == list(range(1000)) and after.num_train_timesteps == 1000
    for table in (
        after.posterior_variance,
        after.posterior_log_variance_clipped,
        after.large_log_variance,
        after.posterior_mean_coef1,
        after.posterior_mean_coef2,
    ):
        assert np.isfinite(table).all()
    assert after.log_snr[-1] == -np.inf and np.isfinite(after.log_snr[:-1]).all()
    with pytest.raises(UserError, match="2 steps or more"):
        zero_terminal_snr(respace(before, [999]))
