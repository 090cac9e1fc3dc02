"""Which timesteps are visited: ADM's, GLIDE's and Karlo's choices, and even log-SNR distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unclip_jax.diffusion.schedule import make_schedule, zero_terminal_snr
from unclip_jax.diffusion.spacing import log_snr_timesteps, spaced_timesteps
from unclip_jax.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("count", [2, 5, 7, 10, 25, 50, 64, 100, 250])
def test_spaced_timesteps_equal_karlo(count: int) -> None:
    golden = np.load(GOLDEN / "karlo_sampler_steps.npz")[f"timesteps_{count}"]
    steps = spaced_timesteps(1000, count)
    np.testing.assert_array_equal(steps[::-1], golden)
    np.testing.assert_array_equal(spaced_timesteps(1000, str(count)), steps)
    assert steps.dtype == np.int32


def test_spaced_timesteps_add_the_stride_up_as_adm_does() -> None:
    """Multiplying instead gives another list for 278 of the counts, first for 21, 23, 31 and 35."""
    others = []
    for count in range(2, 1001):
        steps = spaced_timesteps(1000, count)
        assert len(steps) == count and steps[0] == 0 and steps[-1] == 999
        assert np.all(np.diff(steps) > 0)
        if list(steps) != [round(i * (999 / (count - 1))) for i in range(count)]:
            others.append(count)
    assert len(others) == 278 and others[:4] == [21, 23, 31, 35]


def test_spaced_timesteps_by_sections_strides_and_lists() -> None:
    fast = spaced_timesteps(1000, "fast27")
    sections = spaced_timesteps(1000, "10,10,3,2,2")
    expected = [0, 22, 44, 66, 88, 111, 133, 155, 177, 199]
    assert list(sections) == [
        *expected,
        *(200 + step for step in expected),
        *(400, 500, 599, 600, 799, 800, 999),
    ]
    assert list(fast) == [*sections[:-1], 997]
    # 300 steps in sections of 10, 15 and 20: ADM's own example.
    assert list(spaced_timesteps(300, "10,15,20")[:10]) == list(range(0, 100, 11))
    assert list(spaced_timesteps(1000, "ddim25")) == list(range(0, 1000, 40))
    assert list(spaced_timesteps(1000, [7, 3, 999])) == [3, 7, 999]
    assert list(spaced_timesteps(1000, 1)) == [999]


@pytest.mark.parametrize("spec", ["", "many", "ddim", "ddim999", "1001", 0, -3, "500,2.5", 1001])
def test_bad_specs_are_one_line_errors(spec: int | str) -> None:
    with pytest.raises(UserError) as error:
        spaced_timesteps(1000, spec)
    assert "\n" not in str(error.value) and "give" in str(error.value)


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("count", [1, 2, 7, 20, 50, 250, 990, 1000])
def test_log_snr_steps_are_increasing_timesteps(name: str, count: int) -> None:
    schedule = make_schedule(name)  # type: ignore[arg-type]
    steps = log_snr_timesteps(schedule, count)
    assert len(steps) == count and steps.dtype == np.int32
    assert np.all(np.diff(steps) > 0) and steps[0] >= 0 and steps[-1] <= 999
    assert count == 1 or steps[0] == 0


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_log_snr_steps_are_as_even_as_timesteps_allow(name: str) -> None:
    """No level is farther from its place on the line than the timestep's neighbours are."""
    schedule = make_schedule(name)  # type: ignore[arg-type]
    first, *steps, last = log_snr_timesteps(schedule, 20)
    assert (first, last) == (0, 999)
    levels = np.log(schedule.alphas_bar / (1 - schedule.alphas_bar)) / 2
    even = np.linspace(3.5, -4.5, 18)
    for step, wanted in zip(steps, even, strict=True):
        around = levels[max(step - 1, 0) : step + 2]
        assert np.abs(levels[step] - wanted) == np.abs(around - wanted).min()


def test_log_snr_steps_start_where_no_signal_is() -> None:
    schedule = zero_terminal_snr(make_schedule("cosine"))
    steps = log_snr_timesteps(schedule, 20)
    assert np.all(np.diff(steps) > 0) and steps[-1] == 999
    assert schedule.alphas_bar[steps[-1]] == 0 and schedule.log_snr[steps[-2]] > -5


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_impossible_numbers_of_log_snr_steps_are_refused(count: int) -> None:
    with pytest.raises(UserError, match="give 1 to 1000"):
        log_snr_timesteps(make_schedule("cosine"), count)
