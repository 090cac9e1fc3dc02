"""The diffusion prior with analytic variances: the table in float64, and what it changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import toys
from unclip_jax.diffusion.samplers import SamplerConfig, sample
from unclip_jax.errors import UserError
from unclip_jax.generation.captions import Caption
from unclip_jax.generation.guided import make_chain
from unclip_jax.generation.prior import make_prior
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.models.text import text_mask
from unclip_jax.training.stages import init_params

RECIPE = toys.prior_recipe()
WIDTH, LIMIT = 16, 17.2 / 32  # 0.5375: unit vectors times 0.5375 sqrt(width)
ANALYTIC = SamplerConfig(num_steps=5, thresholding="none", variance="analytic")
NORMS = np.linspace(0.1, 0.9, 1000).astype("f4")


@pytest.fixture(scope="module")
def params() -> Any:
    return toys.random_like(jax.eval_shape(lambda: init_params(RECIPE, jax.random.key(0))))


def captions(rows: int) -> Caption:
    rng = np.random.default_rng(rows)
    text = rng.standard_normal((rows, WIDTH)).astype("f4")
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    states = rng.standard_normal((rows, 12, 16)).astype("f4")
    tokens = jnp.asarray(toys.batch(rows)["tokens"])
    return Caption(tokens, jnp.asarray(text), jnp.asarray(states))


def draw(params: Any, config: SamplerConfig, norms: np.ndarray | None) -> np.ndarray:
    prior = make_prior(RECIPE, captions(1), SamplingConfig(prior=config), None, norms)
    keys = jax.random.split(jax.random.key(0), 3)
    return np.asarray(jax.jit(prior)(params, captions(3), keys))


def table(chain_timesteps: np.ndarray) -> np.ndarray:
    """Bao et al. 2022, theorem 1, for the strided chain, from the definition of the schedule."""
    u = np.arange(1001) / 1000
    level = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    level = np.cumprod(np.maximum(level[1:] / level[:-1], 1e-3))[chain_timesteps]
    previous = np.append(1.0, level[:-1])
    beta = 1 - level / previous
    hidden = (1 - level) / level * (1 - NORMS.astype(np.float64)[chain_timesteps])
    assert hidden[0] < LIMIT**2 < hidden[-1]  # both branches of the bound are in use
    hidden = np.clip(hidden, 0, LIMIT**2)
    posterior = beta * (1 - previous) / (1 - level)
    return posterior + previous * (beta / (1 - level)) ** 2 * hidden


def test_draws_are_those_of_the_table(params: Any) -> None:
    caption, keys = captions(3), jax.random.split(jax.random.key(0), 3)
    chain = make_chain(RECIPE.diffusion, ANALYTIC)
    assert list(np.diff(chain.timesteps)) != [1] * 4

    def denoise(xt: jax.Array, t: jax.Array) -> Any:
        given = (caption.embedding, caption.states, text_mask(caption.tokens))
        return DiffusionPrior(RECIPE.model).apply({"params": params}, xt, t, *given)

    drawn = sample(
        denoise,
        chain,
        (3, WIDTH),
        config=ANALYTIC,
        prediction="x0",
        variance_table=table(chain.timesteps),
        keys=keys,
    )
    expected = np.asarray(drawn, np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(draw(params, ANALYTIC, NORMS), expected, atol=2e-5)


def test_trained_variances_are_what_nothing_hidden_gives(params: Any) -> None:
    """Gamma = 1: the posterior's own variance, which is this recipe's fixed_small."""
    trained = draw(params, replace(ANALYTIC, variance="trained"), NORMS)
    same = draw(params, ANALYTIC, np.ones(1000, np.float32))
    np.testing.assert_allclose(same, trained, atol=2e-5)
    analytic = draw(params, ANALYTIC, NORMS)
    assert np.isfinite(analytic).all() and np.abs(analytic - trained).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(analytic, axis=1), 1, rtol=1e-5)


def test_what_is_missing_is_named(params: Any) -> None:
    with pytest.raises(UserError, match="unclip fit-variance"):
        draw(params, ANALYTIC, None)
