"""Classifier-free guidance and thresholding."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.guidance import classifier_free_guidance, threshold
from unclip_jax.diffusion.process import to_x0
from unclip_jax.diffusion.schedule import make_schedule
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
