"""Caption → image embedding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.samplers import SamplerConfig, sample
from unclip_jax.generation.captions import Caption
from unclip_jax.generation.guided import make_chain, make_guided
from unclip_jax.models.clip import normalize
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.models.text import text_mask
from unclip_jax.training.recipes.prior import PriorRecipe


def sample_embedding(
    recipe: PriorRecipe,
    params: Any,
    caption: Caption,
    empty: Caption,
    keys: Array,
    config: SamplerConfig,
    num_candidates: int,
) -> Array:
    """Image embeddings for captions (Ramesh et al. 2022, section 2.2).

    Args:
        params: of the prior.
        empty: the encoded empty caption, one row; stands for "no caption" in guidance.
        keys: [B] typed keys.
        num_candidates: draws for a row; the one with the largest dot product with the text
            embedding is kept. The paper draws 2.
    Returns:
        [B, E] float32, unit norm.
    """
    module, width = DiffusionPrior(recipe.model), recipe.model.embedding_width
    rows = caption.tokens.shape[0] * num_candidates
    condition = jax.tree.map(lambda x: jnp.repeat(x, num_candidates, axis=0), caption)
    keys = jax.vmap(lambda key: jax.random.split(key, num_candidates))(keys).reshape(rows)

    def run(xt: Array, t: Array, text: Caption) -> Array:
        mask = text_mask(text.tokens)
        output: Any = module.apply({"params": params}, xt, t, text.embedding, text.states, mask)
        return output

    drawn = sample(
        make_guided(run, condition, empty, config.guidance_scale, has_variance=False),
        make_chain(recipe.diffusion, config),
        (rows, width),
        config=config,
        prediction=recipe.diffusion.prediction,
        variance=recipe.diffusion.variance,
        keys=keys,
    )
    candidates = normalize(drawn).reshape(-1, num_candidates, width)
    scores = jnp.einsum("bcd,bd->bc", candidates, caption.embedding)
    best = jnp.argmax(scores, axis=1)
    return jnp.take_along_axis(candidates, best[:, None, None], axis=1)[:, 0]
