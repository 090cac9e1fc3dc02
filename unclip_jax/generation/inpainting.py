"""A decoder where a part of the picture is known, as a row program.

Two ways: a stage `decoder_inpaint`, which was trained to see the known part (Nichol et al. 2021,
section 2.1), or RePaint with any decoder. Rows as in `programs`, and: image [B, S, S, 3] uint8, the
known picture at the decoder's side, and keep [B, S, S, 1] bool. The upsamplers take theirs as rows
of `upsampler_program`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.inpainting import Known, Resampling, known_output, repaint
from unclip_jax.diffusion.samplers import Gradient, SamplerConfig, sample
from unclip_jax.generation.decoder import Condition, make_decoder, sum_of, to_uint8
from unclip_jax.generation.guided import make_chain
from unclip_jax.generation.guides import make_guides
from unclip_jax.generation.precision import computing_in
from unclip_jax.generation.programs import Find, caption_encoder
from unclip_jax.generation.rows import RowProgram, Rows
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.models.known import known_channels
from unclip_jax.training.objectives.conditions import to_float
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.run import training_chain

TRAINED = "decoder_inpaint"
"""The stage that was trained to see what is known."""


def inpaint_program(
    find: Find, how: SamplingConfig, resampling: Resampling | None, *, as_float: bool = False
) -> RowProgram:
    """The rows of `decoder_program` but noise and x_T, image and keep → pictures [B, S, S, 3] that
    are `image` where it is kept.

    Args:
        how: its decoder's method is ddpm or ddim where `resampling` is given.
        resampling: of RePaint with the stage `decoder`; None is the stage `decoder_inpaint`.
        as_float: float32 in [-1, 1] instead of uint8.
    """
    name = TRAINED if resampling is None else "decoder"
    find = computing_in(find, how.dtype)
    recipe: Any = find(name).recipe
    config = replace(how.decoder, guidance_scale=1.0)
    encode, guides = caption_encoder(find), make_guides(find, how)

    def run(params: Any, rows: Rows) -> Array:
        caption, empty = encode(params["clip"], rows)
        images = fill_picture(
            recipe,
            params[name],
            Condition(rows.get("embedding"), caption, empty, rows.get("negative_embedding")),
            Known(to_float(rows["image"]), rows["keep"]),
            config,
            resampling,
            keys=jax.random.wrap_key_data(rows["keys"]),
            guidance=rows.get("guidance"),
            gradients=[
                guide.follow(params, rows[f"guide_{number}"]) for number, guide in enumerate(guides)
            ],
        )
        return images if as_float else to_uint8(images)

    steered = (how.clip_guidance, how.classifier_guidance)
    key = ("inpainting", config, resampling, steered, as_float, how.dtype)
    names = ("clip", name, *(guide.stage for guide in guides))
    return RowProgram("inpainting", key, names, run)


def fill_picture(
    recipe: DecoderRecipe,
    params: Any,
    condition: Condition,
    known: Known,
    config: SamplerConfig,
    resampling: Resampling | None,
    *,
    keys: Array,
    guidance: Array | None = None,
    gradients: Sequence[Gradient] = (),
) -> Array:
    """Pictures of which a part is known.

    Args:
        params: of the decoder.
        known: x0 [B, S, S, 3] float32 in [-1, 1], keep [B, S, S, 1].
        resampling: for a decoder that was not trained for it; None for one that was.
        keys: [B] typed keys.
        guidance, gradients: see `decoder_run`.
    Returns:
        [B, S, S, 3] float32 in [-1, 1].
    """
    chain, kinds = make_chain(recipe.diffusion, config), _kinds(recipe)
    shared: dict[str, Any] = {"config": config, "cond_fn": sum_of(gradients), "keys": keys, **kinds}
    if resampling is not None:
        denoise = make_decoder(recipe, params, condition, config, guidance)
        return repaint(denoise, chain, known, resampling=resampling, **shared)
    condition = replace(condition, known=known_channels(known.x0, known.keep))
    denoise = make_decoder(recipe, params, condition, config, guidance)
    denoise = known_output(denoise, training_chain(recipe.diffusion), known, **kinds)
    return jnp.where(known.keep, known.x0, sample(denoise, chain, known.x0.shape, **shared))


def _kinds(recipe: DecoderRecipe) -> dict[str, Any]:
    return {"prediction": recipe.diffusion.prediction, "variance": recipe.diffusion.variance}
