"""The loss of one random timestep a row: which noise it draws, and how it is weighted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion.weighting import LossWeighting
from unclip_jax.errors import UserError
from unclip_jax.training.objectives.denoising import denoising_loss
from unclip_jax.training.recipes.run import DiffusionConfig, training_chain

COSINE = DiffusionConfig(num_timesteps=50, prediction="x0")
X0 = jax.random.normal(jax.random.key(0), (64, 3))


def loss_of_zeros(diffusion: DiffusionConfig) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss of a network that always says 0, the timesteps and the noisy rows it was given."""
    seen: list[Any] = []

    def predict(xt: jax.Array, t: jax.Array) -> jax.Array:
        seen.append((np.asarray(t), np.asarray(xt, np.float64)))
        return jnp.zeros_like(xt)

    chain = training_chain(diffusion)
    loss, _, _ = denoising_loss(diffusion, chain, jax.random.key(1), X0, predict)
    return float(loss), *seen[0]


@pytest.mark.parametrize(
    "weighting",
    [
        LossWeighting(),
        LossWeighting("min_snr", snr_cap=2.0),
        LossWeighting("p2", p2_gamma=0.5, p2_k=2.0),
    ],
)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_each_row_has_the_weight_of_its_noise(
    weighting: LossWeighting, zero_terminal_snr: bool
) -> None:
    loss, t, _ = loss_of_zeros(
        replace(COSINE, weighting=weighting, zero_terminal_snr=zero_terminal_snr)
    )
    # The schedule and the weights of an x_0 prediction, from their formulas.
    u = np.arange(51) / 50
    level = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    abar = np.cumprod(1 - np.minimum(1 - level[1:] / level[:-1], 0.999))
    if zero_terminal_snr:
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    snr = (abar / (1 - abar))[t]
    weight = {
        "none": np.ones_like(snr),
        "min_snr": np.minimum(snr, 2.0),
        "p2": snr / np.sqrt(2.0 + snr),
    }[weighting.name]
    rows = np.mean(np.asarray(X0, np.float64) ** 2, axis=1)
    assert loss == pytest.approx(np.mean(weight * rows), rel=1e-4)


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    diffusion = replace(COSINE, num_timesteps=2, prediction="v", zero_terminal_snr=True)
    _, t, xt = loss_of_zeros(diffusion)
    last = t == 1
    assert 10 < last.sum() < 54
    # Without a signal, rows at the last step do not correlate with their pictures.
    correlation = np.corrcoef(xt[last].ravel(), np.asarray(X0)[last].ravel())[0, 1]
    plain = replace(diffusion, schedule="linear", num_timesteps=50, zero_terminal_snr=False)
    assert training_chain(plain).alphas_bar[-1] > 0
    assert training_chain(diffusion).alphas_bar[-1] == 0
    assert abs(correlation) < 0.3


def test_eps_cannot_have_zero_terminal_snr() -> None:
    with pytest.raises(UserError, match=r"needs diffusion.prediction x0 or v"):
        DiffusionConfig(prediction="eps", zero_terminal_snr=True)
