"""Image embedding and caption → picture."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.samplers import SamplerConfig, sample
from unclip_jax.generation.guided import make_chain, make_guided
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.text import text_mask
from unclip_jax.training.recipes.decoder import DecoderRecipe


def decode_embedding(
    recipe: DecoderRecipe,
    params: Any,
    embedding: Array,
    tokens: Array,
    empty_tokens: Array,
    keys: Array,
    config: SamplerConfig,
) -> Array:
    """Pictures from image embeddings and captions (Ramesh et al. 2022, section 2.1).

    Guidance drops embedding and caption together.

    Args:
        params: of the decoder.
        embedding: [B, E] float32, unit norm.
        tokens: [B, L] int32.
        empty_tokens: [1, L] int32, the empty caption.
        keys: [B] typed keys.
    Returns:
        [B, H, W, 3] float32 in [-1, 1].
    """
    module, size = Decoder(recipe.model), recipe.model.unet.image_size
    rows = embedding.shape[0]

    def run(xt: Array, t: Array, given: tuple[Array, Array, Array]) -> Array:
        vectors, has_embedding, tokens = given
        output: Any = module.apply(
            {"params": params}, xt, t, vectors, has_embedding, tokens, text_mask(tokens)
        )
        return output

    condition = (embedding, jnp.ones(rows, bool), tokens)
    nothing = (jnp.zeros_like(embedding[:1]), jnp.zeros(1, bool), empty_tokens)
    learned = recipe.diffusion.variance == "learned_range"
    return sample(
        make_guided(run, condition, nothing, config.guidance_scale, has_variance=learned),
        make_chain(recipe.diffusion, config),
        (rows, size, size, 3),
        config=config,
        prediction=recipe.diffusion.prediction,
        variance=recipe.diffusion.variance,
        keys=keys,
    )


def to_uint8(images: Array) -> Array:
    """[-1, 1] float32 → [0, 255] uint8, rounded."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)
