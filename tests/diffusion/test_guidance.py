"""Classifier-free guidance and thresholding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.guidance import (
    classifier_free_guidance,
    scale_in_interval,
    steer_x0,
    threshold,
)
from unclip_jax.diffusion.process import eps_from_x0, to_x0
from unclip_jax.diffusion.samplers import SamplerConfig, sample, sampling_schedule
from unclip_jax.diffusion.schedule import make_schedule, zero_terminal_snr
from unclip_jax.errors import UserError

RNG = np.random.default_rng(0)
COND, UNCOND = (jnp.asarray(RNG.standard_normal((3, 2, 2, 6)), jnp.float32) for _ in range(2))
ROUNDING = {"rtol": 0, "atol": 1e-6}


def test_scale_zero_one_and_beyond() -> None:
    np.testing.assert_array_equal(classifier_free_guidance(COND, UNCOND, 0.0), UNCOND)
    np.testing.assert_allclose(classifier_free_guidance(COND, UNCOND, 1.0), COND, **ROUNDING)
    # (1 + w) cond - w uncond with w = 2, in the paper's own form.
    guided = classifier_free_guidance(COND, UNCOND, 3.0)
    np.testing.assert_allclose(guided, 3 * COND - 2 * UNCOND, rtol=0, atol=4e-6)


def test_one_scale_for_each_row() -> None:
    scales = jnp.array([0.0, 1.0, 4.0])
    guided = classifier_free_guidance(COND, UNCOND, scales)
    for row, scale in enumerate(scales):
        alone = classifier_free_guidance(COND[row : row + 1], UNCOND[row : row + 1], scale)
        np.testing.assert_array_equal(guided[row], alone[0])


def test_learned_variance_is_that_of_the_condition() -> None:
    guided = classifier_free_guidance(COND, UNCOND, 3.0, learned_variance=True)
    np.testing.assert_array_equal(guided[..., 3:], COND[..., 3:])
    expected = classifier_free_guidance(COND[..., :3], UNCOND[..., :3], 3.0)
    np.testing.assert_array_equal(guided[..., :3], expected)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_guiding_the_output_guides_the_clean_sample(prediction: str) -> None:
    schedule, t = make_schedule("cosine"), jnp.array([10, 300, 600])
    xt = jnp.asarray(RNG.standard_normal(COND.shape), jnp.float32)

    def clean(output):
        return to_x0(schedule, prediction, output, xt, t)  # type: ignore[arg-type]

    guided = classifier_free_guidance(COND, UNCOND, 2.5)
    of_clean = classifier_free_guidance(clean(COND), clean(UNCOND), 2.5)
    np.testing.assert_allclose(clean(guided), of_clean, rtol=0, atol=2e-5)


def test_bfloat16_is_guided_in_float32() -> None:
    guided = classifier_free_guidance(COND.astype(jnp.bfloat16), UNCOND.astype(jnp.bfloat16), 3.0)
    assert guided.dtype == jnp.float32


@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
def test_rescaling_gives_rows_their_deviation_back(phi: float) -> None:
    cond, uncond = np.asarray(COND, np.float64), np.asarray(UNCOND, np.float64)
    scales = np.array([1.0, 3.0, 8.0])
    got = classifier_free_guidance(COND, UNCOND, jnp.asarray(scales), rescale=phi)
    for row, scale in enumerate(scales):
        guided = uncond[row] + scale * (cond[row] - uncond[row])
        rescaled = guided * cond[row].std() / guided.std()
        expected = phi * rescaled + (1 - phi) * guided
        np.testing.assert_allclose(got[row], expected, rtol=0, atol=2e-6)
        if phi == 1:
            assert np.std(got[row]) == pytest.approx(cond[row].std(), rel=1e-5)


def test_rescaling_leaves_the_learned_variance_alone() -> None:
    options = {"rescale": 0.7}
    guided = classifier_free_guidance(COND, UNCOND, 5.0, learned_variance=True, **options)
    np.testing.assert_array_equal(guided[..., 3:], COND[..., 3:])
    expected = classifier_free_guidance(COND[..., :3], UNCOND[..., :3], 5.0, **options)
    np.testing.assert_array_equal(guided[..., :3], expected)


def test_the_interval_includes_both_of_its_ends() -> None:
    t = jnp.array([0, 99, 100, 400, 401, 999])
    inside = scale_in_interval(3.0, t, (100, 400))
    np.testing.assert_array_equal(inside, [1, 1, 3, 3, 1, 1])
    np.testing.assert_array_equal(scale_in_interval(3.0, t, None), np.full(6, 3.0))
    scales = jnp.arange(2.0, 8.0)
    np.testing.assert_array_equal(scale_in_interval(scales, t, (99, 100)), [1, 3, 4, 1, 1, 1])


def guided_samples(
    scales: jax.Array, interval: tuple[int, int] | None = None, rows: slice = slice(None)
) -> np.ndarray:
    """Guided samples of a bounded network; row i has its own noise, condition and scale."""
    training = make_schedule("cosine")
    config = SamplerConfig(num_steps=8)
    chain = sampling_schedule(training, config)
    keys = jax.random.split(jax.random.key(3), 3)[rows]
    condition = jnp.array([-1.0, 0.5, 2.0])[rows, None]

    def denoise(xt: jax.Array, timestep: jax.Array) -> jax.Array:
        cond, uncond = jnp.sin(xt + condition), jnp.cos(2 * xt)
        scale = scale_in_interval(scales[rows], timestep, interval)
        return classifier_free_guidance(cond, uncond, scale, rescale=0.3)

    shape = (len(keys), 4)
    return np.asarray(sample(denoise, chain, shape, config=config, prediction="v", keys=keys))


def test_pictures_with_their_own_scales_are_each_scale_alone() -> None:
    scales = jnp.array([1.0, 2.5, 6.0])
    together = guided_samples(scales)
    for row in range(3):
        alone = guided_samples(scales, rows=slice(row, row + 1))
        np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=2e-5)
    same = guided_samples(jnp.full(3, 2.5))
    np.testing.assert_allclose(same[1], together[1], rtol=0, atol=2e-5)
    assert np.abs(same - together).max(axis=1)[[0, 2]].min() > 0.01


def test_outside_the_interval_nothing_is_guided() -> None:
    """Of 8 steps at 0, 143, 285, 428, 571, ... only those inside matter."""
    scales = jnp.full(3, 6.0)
    plain = guided_samples(jnp.ones(3))
    np.testing.assert_allclose(guided_samples(scales, (1, 142)), plain, rtol=0, atol=2e-5)
    everywhere = guided_samples(scales, (0, 999))
    np.testing.assert_allclose(everywhere, guided_samples(scales), rtol=0, atol=2e-5)
    within = guided_samples(scales, (140, 600))
    assert min(np.abs(within - plain).max(), np.abs(within - everywhere).max()) > 0.01


def test_steering_subtracts_the_gradient_from_eps() -> None:
    schedule, t = make_schedule("cosine"), jnp.array([10, 300, 600])
    x0, xt, gradient = (
        jnp.asarray(RNG.standard_normal((3, 2, 2, 1)), jnp.float32) for _ in range(3)
    )
    noise = np.sqrt(1 - schedule.alphas_bar[np.asarray(t)])[:, None, None, None]
    expected = eps_from_x0(schedule, x0, xt, t) - noise * gradient
    steered = steer_x0(schedule, x0, gradient, t)
    # 1 / sqrt(1 - abar) is 38 at most.
    got = eps_from_x0(schedule, steered, xt, t)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
    with pytest.raises(UserError, match="choose ddpm"):
        steer_x0(zero_terminal_snr(schedule), x0, gradient, t)


def test_no_and_static_thresholding() -> None:
    x0 = jnp.array([[-20.0, -0.5, 0.0, 3.0]])
    np.testing.assert_array_equal(threshold(x0, "none"), x0)
    np.testing.assert_array_equal(threshold(x0, "static"), [[-1.0, -0.5, 0.0, 1.0]])
    np.testing.assert_array_equal(threshold(x0, "static", limit=10.0), [[-10.0, -0.5, 0.0, 3.0]])


def test_dynamic_thresholding_is_per_row() -> None:
    x0 = RNG.standard_normal((3, 4, 4, 2)).astype(np.float32) * np.float32(3)
    x0[1] = np.clip(x0[1], -0.9, 0.9)
    got = np.asarray(threshold(jnp.asarray(x0), "dynamic", percentile=0.9))
    for row in range(3):
        bound = max(np.quantile(np.abs(x0[row].astype(np.float64)), 0.9), 1.0)
        expected = np.clip(x0[row], -bound, bound) / bound
        np.testing.assert_allclose(got[row], expected, **ROUNDING)
    np.testing.assert_array_equal(got[1], x0[1])
    assert np.abs(got).max() <= 1 + 1e-6


def test_dynamic_thresholding_scales_to_its_limit() -> None:
    x0 = jnp.array([[-8.0, 4.0, 2.0, 1.0]])
    got = threshold(x0, "dynamic", limit=2.0, percentile=1.0)
    np.testing.assert_allclose(got, [[-2.0, 1.0, 0.5, 0.25]], **ROUNDING)


def test_unknown_thresholding_is_refused() -> None:
    with pytest.raises(UserError, match="choose none, static or dynamic"):
        threshold(jnp.zeros((1, 1)), "soft")  # type: ignore[arg-type]
