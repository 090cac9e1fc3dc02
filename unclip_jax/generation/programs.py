"""What of a model is compiled for sampling: a row program for each stage.

The same programs are run by `UnCLIP` and compiled ahead of time, for devices that are not there, by
`plan --sample`. Rows by name: tokens [B, L] int32, keys [B, ...] uint32 key data, embedding [B, E]
float32, image [B, H, W, 3], and where they are given guidance [B] and noise (see `split_draws`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.generation.captions import Caption, encode_caption
from unclip_jax.generation.decoder import Condition, decode_embedding, to_uint8
from unclip_jax.generation.guides import make_guides
from unclip_jax.generation.prior import make_prior, sample_embedding
from unclip_jax.generation.rows import RowProgram, Rows, run_in_groups
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.tiling import TilingConfig
from unclip_jax.generation.upsampler import upsample_picture
from unclip_jax.models.clip import CLIP, CLIPConfig
from unclip_jax.training.objectives.conditions import encode_image, to_float
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.weights import Stage

PRIORS = {
    "diffusion": "prior",
    "ar": "ar_prior",
    "linear": "linear_prior",
    "one_step": "one_step_prior",
}
"""How a prior is named in a call, and its stage."""
Find = Callable[[str], Stage]
"""A stage by its name; UserError if the model has none."""


def text_program(find: Find) -> RowProgram:
    """tokens → text embeddings [B, E] float32."""
    config = _clip_config(find)

    def run(params: Any, rows: Rows) -> Array:
        return encode_caption(config, params["clip"], rows["tokens"]).embedding

    return RowProgram("text", "text", ("clip",), run)


def image_program(find: Find) -> RowProgram:
    """image uint8 of any side → image embeddings [B, E] float32."""
    module = CLIP(_clip_config(find))

    def run(params: Any, rows: Rows) -> Array:
        return encode_image(module, params["clip"], rows["image"])

    return RowProgram("image", "image", ("clip",), run)


def prior_program(find: Find, how: SamplingConfig, prior: str = "diffusion") -> RowProgram:
    """tokens and keys → image embeddings [B, E] float32, the best of `how.num_candidates`.

    Args:
        prior: one of `PRIORS`.
    """
    if prior not in PRIORS:
        raise UserError(f"prior {prior!r} is unknown: choose {', '.join(PRIORS)}")
    name = PRIORS[prior]
    stage, encode = find(name), _caption_encoder(find)
    recipe: Any = stage.recipe

    def run(params: Any, rows: Rows) -> Array:
        caption, empty = encode(params["clip"], rows["tokens"])
        extras = (stage.codes, stage.score_norms, stage.statistics, rows.get("noise"))
        draw = make_prior(recipe, empty, how, *extras)
        keys = jax.random.wrap_key_data(rows["keys"])
        return sample_embedding(draw, params[name], caption, keys, how.num_candidates)

    key = (name, how.prior, how.ar_prior, how.num_candidates)
    return RowProgram(name, key, ("clip", name), run)


def decoder_program(find: Find, how: SamplingConfig, *, as_float: bool = False) -> RowProgram:
    """tokens, keys and, if they are given, embedding, guidance, noise → pictures [B, S, S, 3].

    What steers (`make_guides`) reads the rows `guide_0`, `guide_1`, ...

    Args:
        as_float: float32 in [-1, 1] instead of uint8.
    """
    recipe: Any = find("decoder").recipe
    encode, guides = _caption_encoder(find), make_guides(find, how)

    def run(params: Any, rows: Rows) -> Array:
        caption, empty = encode(params["clip"], rows["tokens"])
        images = decode_embedding(
            recipe,
            params["decoder"],
            Condition(rows.get("embedding"), caption, empty),
            how.decoder,
            keys=jax.random.wrap_key_data(rows["keys"]),
            noise=rows.get("noise"),
            guidance=rows.get("guidance"),
            gradients=[
                guide.follow(params, rows[f"guide_{number}"]) for number, guide in enumerate(guides)
            ],
        )
        return images if as_float else to_uint8(images)

    steered = (how.clip_guidance, how.classifier_guidance)
    names = ("clip", "decoder", *(guide.stage for guide in guides))
    key = ("decoder", how.decoder, steered, as_float)
    return RowProgram("decoder", key, names, run)


def upsampler_program(
    find: Find, how: SamplingConfig, size: int, *, has_last: bool, as_float: bool = False
) -> RowProgram:
    """image uint8 or float32 in [-1, 1], and keys → pictures of four times the side.

    Args:
        size: 256 or 1024, which names the upsampler.
        has_last: a stage `upsampler_SIZE_last` takes the last step (Karlo).
    """
    name = f"upsampler_{size}"
    recipe: Any = find(name).recipe
    config = {256: how.upsampler_256, 1024: how.upsampler_1024}[size]
    tiling = None if how.tile is None else TilingConfig(how.tile, how.tile_overlap)

    def run(params: Any, rows: Rows) -> Array:
        def upsample(group: Rows) -> Array:
            low_res = group["image"]
            large = upsample_picture(
                recipe,
                params[name],
                to_float(low_res) if low_res.dtype == jnp.uint8 else low_res,
                jax.random.wrap_key_data(group["keys"]),
                config,
                tiling,
                last_params=params.get(f"{name}_last"),
                noise=group.get("noise"),
            )
            return large if as_float else to_uint8(large)

        return run_in_groups(upsample, rows, how.upsample_batch_size)

    names = (name, f"{name}_last") if has_last else (name,)
    key = (name, config, tiling, how.upsample_batch_size, as_float)
    return RowProgram(name, key, names, run)


def _clip_config(find: Find) -> CLIPConfig:
    recipe = find("clip").recipe
    assert isinstance(recipe, CLIPRecipe)
    return recipe.model


def _caption_encoder(find: Find) -> Callable[[Any, Array], tuple[Caption, Caption]]:
    """(CLIP's parameters, tokens) → the encoded captions, and the empty one in one row."""
    config, tokenizer = _clip_config(find), find("clip").tokenizer
    assert tokenizer is not None
    nothing = tokenizer([""])

    def encode(params: Any, tokens: Array) -> tuple[Caption, Caption]:
        return (
            encode_caption(config, params, tokens),
            encode_caption(config, params, jnp.asarray(nothing)),
        )

    return encode
