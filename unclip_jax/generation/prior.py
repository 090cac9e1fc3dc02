"""Caption → image embedding, by any of the four priors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.analytic import analytic_variance
from unclip_jax.diffusion.samplers import SamplerConfig, sample, split_draws
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.errors import UserError
from unclip_jax.generation.captions import Caption
from unclip_jax.generation.code_sampling import sample_ar_prior
from unclip_jax.generation.guided import make_chain, make_guided
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.models.cached_transformer import Cache
from unclip_jax.models.clip import normalize
from unclip_jax.models.embedding_codes import EmbeddingCodes
from unclip_jax.models.linear_prior import sample_linear_prior
from unclip_jax.models.one_step_prior import sample_one_step_prior
from unclip_jax.models.prior import PriorConfig, denoise_embedding, read_caption
from unclip_jax.models.text import text_mask
from unclip_jax.training.embedding_statistics import EmbeddingStatistics
from unclip_jax.training.recipe import AnyPriorRecipe
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe, OneStepPriorRecipe
from unclip_jax.training.recipes.prior import PriorRecipe

Draw = Callable[[Any, Caption, Array], Array]
"""(parameters, captions of B rows, keys [B]) → image embeddings [B, E] float32, of unit norm or,
from a prior in whitened space, as CLIP would make them."""


def make_prior(
    recipe: AnyPriorRecipe,
    empty: Caption,
    config: SamplingConfig,
    codes: EmbeddingCodes | None,
    score_norms: np.ndarray | None = None,
    statistics: EmbeddingStatistics | None = None,
    noise: Array | None = None,
) -> Draw:
    """One draw from a prior for each row; the same call for all four.

    Args:
        empty: the encoded empty caption, one row; stands for "no caption" in guidance.
        codes: of an autoregressive prior.
        score_norms: [T], of a diffusion prior; read where config.prior.variance is 'analytic'.
        statistics: of a diffusion prior in whitened space.
        noise: [B, steps, E] float32 in place of a diffusion prior's noise by key, see
            `split_draws`; the draw is then of these B rows.
    Raises:
        UserError: codes, score norms or statistics are needed and None.
    """
    if isinstance(recipe, PriorRecipe):
        return _diffusion_prior(recipe, empty, config.prior, score_norms, statistics, noise)
    sampler: Callable[..., Array]
    arguments: tuple[Any, ...] = (recipe.model,)
    if isinstance(recipe, LinearPriorRecipe):
        sampler = sample_linear_prior
    elif isinstance(recipe, OneStepPriorRecipe):
        sampler = sample_one_step_prior
    else:
        assert isinstance(recipe, ARPriorRecipe)
        if codes is None:
            raise UserError("this autoregressive prior has no codes: load the folder it is in")
        nothing = (empty.states, text_mask(empty.tokens))
        sampler = sample_ar_prior
        arguments = (recipe.model, config.ar_prior, codes, nothing)

    def draw(params: Any, caption: Caption, keys: Array) -> Array:
        text = (caption.embedding, caption.states, text_mask(caption.tokens))
        return sampler(*arguments, params, *text, keys)

    return draw


def sample_embedding(
    draw: Draw, params: Any, caption: Caption, keys: Array, num_candidates: int
) -> Array:
    """Image embeddings for captions, the best of several draws (Ramesh et al. 2022, section 2.2).

    Args:
        draw, params: a prior and its parameters.
        keys: [B] typed keys.
        num_candidates: draws for a row; the one whose direction is nearest to the text
            embedding's is kept. The paper draws 2 from the diffusion prior.
    Returns:
        [B, E] float32, as `draw` makes them.
    """
    rows = caption.tokens.shape[0] * num_candidates
    condition = jax.tree.map(lambda x: jnp.repeat(x, num_candidates, axis=0), caption)
    keys = jax.vmap(lambda key: jax.random.split(key, num_candidates))(keys).reshape(rows)
    drawn = draw(params, condition, keys)
    candidates = drawn.reshape(-1, num_candidates, drawn.shape[-1])
    scores = jnp.einsum("bcd,bd->bc", normalize(candidates), normalize(caption.embedding))
    best = jnp.argmax(scores, axis=1)
    return jnp.take_along_axis(candidates, best[:, None, None], axis=1)[:, 0]


def _diffusion_prior(
    recipe: PriorRecipe,
    empty: Caption,
    config: SamplerConfig,
    score_norms: np.ndarray | None,
    statistics: EmbeddingStatistics | None,
    noise: Array | None,
) -> Draw:
    if recipe.model.is_whitened and statistics is None:
        raise UserError(
            "this prior works in whitened space, and its statistics are missing: load its folder"
        )
    model, chain = recipe.model, make_chain(recipe.diffusion, config)
    table = None
    if config.variance == "analytic":
        table = variance_table(model, chain, score_norms)

    def draw(params: Any, caption: Caption, keys: Array) -> Array:
        def read(text: Caption) -> Cache:
            return read_caption(model, params, text.embedding, text.states, text_mask(text.tokens))

        def run(xt: Array, t: Array, cache: Cache) -> Array:
            return denoise_embedding(model, params, cache, xt, t)

        x_T, step_noise = split_draws(noise, len(chain))
        drawn = sample(
            make_guided(run, caption, empty, config, has_variance=False, prepare=read),
            chain,
            (keys.shape[0], model.embedding_width),
            config=config,
            prediction=recipe.diffusion.prediction,
            variance=recipe.diffusion.variance,
            variance_table=table,
            keys=keys,
            x_T=x_T,
            noise=step_noise,
        )
        if model.is_whitened:
            assert statistics is not None
            return drawn * statistics.deviation + statistics.mean
        return normalize(drawn)

    return draw


def variance_table(
    model: PriorConfig, chain: Schedule, score_norms: np.ndarray | None
) -> np.ndarray:
    """[N] float64, the best variances for the steps of `chain`.

    Args:
        score_norms: [T], of every timestep that the prior was trained for.
    Raises:
        UserError: there are none.
    """
    if score_norms is None:
        raise UserError(
            "variance is 'analytic', but this prior has no score norms of its present weights: "
            "make them with `unclip fit-variance PRIOR`, or choose 'trained'"
        )
    # Clean samples are unit vectors times the scale: no more than scale^2 / E of mean square is
    # there to be hidden in a dimension. The sampler's own `limit` is about single entries.
    limit = model.scale / np.sqrt(model.embedding_width)
    return analytic_variance(chain, score_norms[chain.timesteps], limit=float(limit))
