"""Caption → image embedding, by any of the four priors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.samplers import SamplerConfig, sample
from unclip_jax.errors import UserError
from unclip_jax.generation.captions import Caption
from unclip_jax.generation.guided import make_chain, make_guided
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.models.clip import normalize
from unclip_jax.models.code_sampling import sample_ar_prior
from unclip_jax.models.embedding_codes import EmbeddingCodes
from unclip_jax.models.linear_prior import sample_linear_prior
from unclip_jax.models.one_step_prior import sample_one_step_prior
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.models.text import text_mask
from unclip_jax.training.recipe import AnyPriorRecipe
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe, OneStepPriorRecipe
from unclip_jax.training.recipes.prior import PriorRecipe

Draw = Callable[[Any, Caption, Array], Array]
"""(parameters, captions of B rows, keys [B]) → image embeddings [B, E] float32, unit norm."""


def make_prior(
    recipe: AnyPriorRecipe, empty: Caption, config: SamplingConfig, codes: EmbeddingCodes | None
) -> Draw:
    """One draw from a prior for each row; the same call for all four.

    Args:
        empty: the encoded empty caption, one row; stands for "no caption" in guidance.
        codes: of an autoregressive prior.
    """
    if isinstance(recipe, PriorRecipe):
        return _diffusion_prior(recipe, empty, config.prior)
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
        num_candidates: draws for a row; the one with the largest dot product with the text
            embedding is kept. The paper draws 2 from the diffusion prior.
    Returns:
        [B, E] float32, unit norm.
    """
    rows = caption.tokens.shape[0] * num_candidates
    condition = jax.tree.map(lambda x: jnp.repeat(x, num_candidates, axis=0), caption)
    keys = jax.vmap(lambda key: jax.random.split(key, num_candidates))(keys).reshape(rows)
    drawn = draw(params, condition, keys)
    candidates = drawn.reshape(-1, num_candidates, drawn.shape[-1])
    scores = jnp.einsum("bcd,bd->bc", candidates, caption.embedding)
    best = jnp.argmax(scores, axis=1)
    return jnp.take_along_axis(candidates, best[:, None, None], axis=1)[:, 0]


def _diffusion_prior(recipe: PriorRecipe, empty: Caption, config: SamplerConfig) -> Draw:
    module = DiffusionPrior(recipe.model)

    def draw(params: Any, caption: Caption, keys: Array) -> Array:
        def run(xt: Array, t: Array, text: Caption) -> Array:
            mask = text_mask(text.tokens)
            output: Any = module.apply({"params": params}, xt, t, text.embedding, text.states, mask)
            return output

        drawn = sample(
            make_guided(run, caption, empty, config, has_variance=False),
            make_chain(recipe.diffusion, config),
            (keys.shape[0], recipe.model.embedding_width),
            config=config,
            prediction=recipe.diffusion.prediction,
            variance=recipe.diffusion.variance,
            keys=keys,
        )
        return normalize(drawn)

    return draw
