"""Image embedding and caption → picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.samplers import (
    Denoise,
    Gradient,
    Run,
    SamplerConfig,
    ddim_invert,
    finish,
    make_run,
    split_draws,
)
from unclip_jax.errors import UserError
from unclip_jax.generation.captions import Caption
from unclip_jax.generation.guided import make_chain, make_guided
from unclip_jax.models.decoder import EncodedCondition, denoise_picture, encode_condition
from unclip_jax.models.text import text_mask
from unclip_jax.training.recipes.decoder import DecoderRecipe


@dataclass(frozen=True)
class Condition:
    """What the decoder draws from."""

    embedding: Array | None
    """[B, E] float32, CLIP image embeddings; None leaves the caption alone, as in GLIDE: what the
    decoder learned from embeddings that were dropped."""
    caption: Caption
    """Of B rows."""
    empty: Caption
    """The empty caption in one row, or B negative ones: what guidance leads away from."""
    negative: Array | None = None
    """[B, E] float32, CLIP image embeddings that guidance leads away from; None drops embedding and
    caption together."""
    known: Array | None = None
    """[B, H, W, 4] float32, `known_channels`, for an inpainting decoder; None says that nothing is
    known."""


jax.tree_util.register_dataclass(Condition)


def make_decoder(
    recipe: DecoderRecipe,
    params: Any,
    condition: Condition,
    config: SamplerConfig,
    guidance: Array | None = None,
) -> Denoise:
    """The decoder under its condition and guidance, as `diffusion.samplers` calls it.

    Args:
        guidance: [B] float32, the scale of each row; None is the config's, for all.
    Raises:
        UserError: an embedding or a known part for a decoder that reads none.
    """
    model, width = recipe.model, recipe.model.embedding_width
    if width is None and condition.embedding is not None:
        raise UserError(
            "this decoder reads captions alone (model.embedding_width is None): give no embedding"
        )

    def encode(given: tuple[Any, Any, Caption, Any]) -> tuple[EncodedCondition, Any]:
        vectors, has_embedding, caption, known = given
        text = (caption.tokens, text_mask(caption.tokens), caption.embedding, caption.states)
        return encode_condition(model, params, vectors, has_embedding, *text), known

    def run(xt: Array, t: Array, encoded: tuple[EncodedCondition, Any]) -> Array:
        return denoise_picture(model, params, encoded[0], xt, t, encoded[1])

    vectors = none = has = has_none = None
    if width is not None:
        none, has_none = jnp.zeros((1, width)), jnp.zeros(1, bool)
        vectors = condition.embedding
        has = jnp.full(condition.caption.tokens.shape[0], vectors is not None)
        if vectors is None:
            vectors = jnp.broadcast_to(none, (len(has), width))
        if condition.negative is not None:
            none, has_none = condition.negative, jnp.ones(1, bool)
    # Guidance does not lead away from what is known: it is true in both branches.
    given = (vectors, has, condition.caption, condition.known)
    nothing = (none, has_none, condition.empty, condition.known)
    learned = recipe.diffusion.variance == "learned_range"
    return make_guided(
        run, given, nothing, config, has_variance=learned, scale=guidance, prepare=encode
    )


def decode_embedding(
    recipe: DecoderRecipe,
    params: Any,
    condition: Condition,
    config: SamplerConfig,
    **draws: Any,
) -> Array:
    """Pictures from image embeddings and captions (Ramesh et al. 2022, section 2.1).

    Arguments as `decoder_run`.

    Returns:
        [B, H, W, 3] float32 in [-1, 1].
    """
    run = decoder_run(recipe, params, condition, config, **draws)
    return finish(run, len(make_chain(recipe.diffusion, config)))


def decoder_run(
    recipe: DecoderRecipe,
    params: Any,
    condition: Condition,
    config: SamplerConfig,
    *,
    keys: Array | None = None,
    x_T: Array | None = None,
    noise: Array | None = None,
    guidance: Array | None = None,
    gradients: Sequence[Gradient] = (),
) -> Run:
    """The decoder's chain, to be run step by step.

    Args:
        params: of the decoder.
        keys: [B] typed keys, from which noise is drawn that is not given.
        x_T: [B, H, W, 3] float32, the noise to start from; by key if None.
        noise: [B, steps, H, W, 3] float32, all noise in the order of drawing, see `split_draws`;
            excludes x_T.
        guidance: [B] float32, the guidance scale of each row; None is the config's, for all.
        gradients: of networks that steer, see `steering.py`; their sum is followed.
    """
    size, chain = recipe.model.unet.image_size, make_chain(recipe.diffusion, config)
    start, step_noise = split_draws(noise, len(chain))
    return make_run(
        make_decoder(recipe, params, condition, config, guidance),
        chain,
        (condition.caption.tokens.shape[0], size, size, 3),
        config=config,
        prediction=recipe.diffusion.prediction,
        variance=recipe.diffusion.variance,
        cond_fn=sum_of(gradients),
        keys=keys,
        x_T=x_T if noise is None else start,
        noise=step_noise,
    )


def invert_picture(
    recipe: DecoderRecipe, params: Any, condition: Condition, config: SamplerConfig, images: Array
) -> Array:
    """The noise from which DDIM with eta 0 decodes `images` (Ramesh et al. 2022, section 3).

    Args:
        images: [B, H, W, 3] float32 in [-1, 1], at the decoder's side.
    Returns:
        x_T [B, H, W, 3] float32.
    """
    return ddim_invert(
        make_decoder(recipe, params, condition, config),
        make_chain(recipe.diffusion, config),
        images,
        config=config,
        prediction=recipe.diffusion.prediction,
        variance=recipe.diffusion.variance,
    )


def sum_of(gradients: Sequence[Gradient]) -> Gradient | None:
    """One gradient that is the sum of all; None if there is none."""
    if not gradients:
        return None

    def total(xt: Array, t: Array) -> Array:
        return sum((gradient(xt, t) for gradient in gradients), start=jnp.zeros_like(xt))

    return total


def to_uint8(images: Array) -> Array:
    """[-1, 1] float32 → [0, 255] uint8, rounded."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)
