"""Loss weights against their definitions, one timestep at a time."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.losses import diffusion_loss
from unclip_jax.diffusion.process import Prediction, q_sample, target, to_x0
from unclip_jax.diffusion.schedule import make_schedule, zero_terminal_snr
from unclip_jax.diffusion.weighting import LossWeighting, loss_weight
from unclip_jax.errors import UserError

SCHEDULE = make_schedule("cosine")
SNR = [float(level / (1 - level)) for level in SCHEDULE.alphas_bar]


@pytest.mark.parametrize("cap", [1.0, 5.0])
def test_min_snr_is_its_three_formulas(cap: float) -> None:
    weighting = LossWeighting("min_snr", snr_cap=cap)
    formulas = {
        "x0": [min(snr, cap) for snr in SNR],
        "eps": [min(snr, cap) / snr for snr in SNR],
        "v": [min(snr, cap) / (snr + 1) for snr in SNR],
    }
    for prediction, expected in formulas.items():
        got = loss_weight(SCHEDULE, prediction, weighting)  # type: ignore[arg-type]
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_p2_is_its_formula_for_eps() -> None:
    weighting = LossWeighting("p2", p2_gamma=0.5, p2_k=2.0)
    expected = [1 / (2.0 + snr) ** 0.5 for snr in SNR]
    np.testing.assert_allclose(loss_weight(SCHEDULE, "eps", weighting), expected, rtol=1e-12)


def test_no_weighting_is_one() -> None:
    for prediction in ("eps", "x0", "v"):
        np.testing.assert_array_equal(loss_weight(SCHEDULE, prediction, LossWeighting()), 1)
    flat = LossWeighting("p2", p2_gamma=0.0)
    np.testing.assert_array_equal(loss_weight(SCHEDULE, "eps", flat), 1)


@pytest.mark.parametrize("weighting", [LossWeighting("min_snr"), LossWeighting("p2")])
def test_the_weighted_loss_does_not_depend_on_what_is_predicted(weighting: LossWeighting) -> None:
    """Three networks that are wrong about the same x_0 by the same amount."""
    rng = np.random.default_rng(0)
    t = jnp.array([50, 300, 700])
    x0, noise, off = (jnp.asarray(rng.standard_normal((3, 8)), jnp.float32) for _ in range(3))
    xt = q_sample(SCHEDULE, x0, t, noise)
    wrong_x0 = x0 + off
    level = SCHEDULE.alphas_bar[np.asarray(t)][:, None]
    wrong_eps = (xt - np.sqrt(level) * wrong_x0) / np.sqrt(1 - level)
    outputs: dict[Prediction, jnp.ndarray] = {
        "x0": wrong_x0,
        "eps": jnp.asarray(wrong_eps, jnp.float32),
        "v": target(SCHEDULE, "v", wrong_x0, jnp.asarray(wrong_eps, jnp.float32), t),
    }
    losses = {}
    for prediction, output in outputs.items():
        assert np.abs(to_x0(SCHEDULE, prediction, output, xt, t) - wrong_x0).max() < 1e-4
        losses[prediction], metrics = diffusion_loss(
            SCHEDULE,
            output,
            x0,
            xt,
            t,
            noise,
            prediction=prediction,
            variance="fixed_small",
            weighting=weighting,
        )
        weight = loss_weight(SCHEDULE, prediction, weighting)[np.asarray(t)]
        np.testing.assert_allclose(losses[prediction], metrics["mse"] * weight, rtol=1e-6)
    np.testing.assert_allclose(losses["eps"], losses["x0"], rtol=1e-4)
    np.testing.assert_allclose(losses["v"], losses["x0"], rtol=1e-4)


def test_the_bound_is_not_weighted() -> None:
    rng = np.random.default_rng(1)
    t = jnp.array([3, 600])
    x0, noise = (jnp.asarray(rng.standard_normal((2, 5)), jnp.float32) for _ in range(2))
    output = jnp.asarray(rng.standard_normal((2, 10)), jnp.float32)
    xt = q_sample(SCHEDULE, x0, t, noise)
    weighting = LossWeighting("min_snr")
    loss, metrics = diffusion_loss(
        SCHEDULE,
        output,
        x0,
        xt,
        t,
        noise,
        prediction="eps",
        variance="learned_range",
        weighting=weighting,
    )
    weight = loss_weight(SCHEDULE, "eps", weighting)[np.asarray(t)]
    np.testing.assert_allclose(loss, metrics["mse"] * weight + metrics["vb"], rtol=1e-6)


def test_weights_without_any_signal() -> None:
    schedule = zero_terminal_snr(SCHEDULE)
    for weighting in (LossWeighting("min_snr"), LossWeighting("p2")):
        for prediction in ("eps", "x0", "v"):
            weight = loss_weight(schedule, prediction, weighting)
            assert np.isfinite(weight).all()
            assert weight[-1] == (1 if prediction == "eps" else 0)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("min_snr", {"name": "snr"}),
        ("snr_cap", {"snr_cap": 0.0}),
        ("p2_gamma", {"p2_gamma": -1.0}),
        ("p2_k", {"p2_k": 0.0}),
    ],
)
def test_fields_are_checked(field: str, values: dict) -> None:
    with pytest.raises(UserError, match=field) as error:
        LossWeighting(**values)
    assert "\n" not in str(error.value)
