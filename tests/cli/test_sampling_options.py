"""What sample.py's options make of a model's sampling settings."""

from __future__ import annotations

from typing import Any

import pytest

from unclip_jax.cli.drawing_options import sampling_of
from unclip_jax.cli.text_options import TextOptions
from unclip_jax.errors import UserError
from unclip_jax.generation.sampling import SamplingConfig

MODEL = SamplingConfig(batch_size=3)


def sampling(**options: Any) -> SamplingConfig:
    return sampling_of(TextOptions(prompt=("a",), **options), MODEL)


def test_nothing_said_is_the_models_own() -> None:
    assert sampling() == MODEL


def test_options_reach_their_stage() -> None:
    how = sampling(
        steps="fast27",
        guidance_interval=(100, 900),
        guidance_rescale=0.7,
        thresholding="dynamic",
        prior_variance="analytic",
        upsample_steps="10,10,3",
        upsample_noise=0.997,
    )
    assert how.decoder.num_steps == "fast27" and how.decoder.guidance_interval == (100, 900)
    assert how.decoder.guidance_rescale == 0.7 and how.decoder.thresholding == "dynamic"
    assert how.prior.variance == "analytic" and how.prior.num_steps == MODEL.prior.num_steps
    for upsampler in (how.upsampler_256, how.upsampler_1024):
        assert upsampler.num_steps == "10,10,3" and upsampler.start_scale == 0.997


@pytest.mark.parametrize("sampler", ["dpm_solver", "unipc"])
def test_solvers_space_their_steps_by_log_snr(sampler: str) -> None:
    assert sampling(sampler=sampler, steps=15).decoder.spacing == "log_snr"
    assert sampling(sampler=sampler).decoder.spacing == "log_snr"
    assert sampling(sampler=sampler, spacing="respaced").decoder.spacing == "respaced"
    assert sampling(sampler=sampler, steps="fast27").decoder.spacing == "respaced"
    assert sampling(sampler="ddim", steps=15).decoder.spacing == "respaced"


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="needs a plain number of steps"):
        sampling(steps="fast27", spacing="log_snr")
    with pytest.raises(UserError, match="only ddim reads it"):
        sampling(sampler="unipc", eta=0.5)
