"""What of a model is compiled for sampling: a row program for each stage.

The same programs are run by `UnCLIP` and compiled ahead of time, for devices that are not there, by
`plan --sample`. Rows by name: tokens [B, L] int32, keys [B, ...] uint32 key data, embedding [B, E]
float32, image [B, H, W, 3], and where they are given guidance [B], noise (see `split_draws`), x_T,
negative_tokens and negative_embedding: what guidance leads away from; known [B, H, W, 3] uint8 and
keep [B, H, W, 1] bool: a picture of the result's size, and where the result is that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.inpainting import Known
from unclip_jax.diffusion.samplers import Run, SamplerConfig, State, finish
from unclip_jax.errors import UserError
from unclip_jax.generation.captions import Caption, encode_caption
from unclip_jax.generation.decoder import Condition, decoder_run, invert_picture, to_uint8
from unclip_jax.generation.guided import make_chain
from unclip_jax.generation.guides import make_guides
from unclip_jax.generation.precision import computing_in
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
    find, name = computing_in(find, how.dtype), PRIORS[prior]
    stage, encode = find(name), caption_encoder(find)
    recipe: Any = stage.recipe

    def run(params: Any, rows: Rows) -> Array:
        caption, empty = encode(params["clip"], rows)
        if "negative_tokens" in rows:  # as many as the candidates
            empty = jax.tree.map(lambda x: jnp.repeat(x, how.num_candidates, axis=0), empty)
        extras = (stage.codes, stage.score_norms, stage.statistics, rows.get("noise"))
        draw = make_prior(recipe, empty, how, *extras)
        keys = jax.random.wrap_key_data(rows["keys"])
        return sample_embedding(draw, params[name], caption, keys, how.num_candidates)

    key = (name, how.prior, how.ar_prior, how.num_candidates, how.dtype)
    return RowProgram(name, key, ("clip", name), run)


def decoder_program(find: Find, how: SamplingConfig, *, as_float: bool = False) -> RowProgram:
    """tokens, keys and, if they are given, embedding, guidance, noise, x_T and the negatives →
    pictures [B, S, S, 3].

    The guidance scale is a row, so that another one compiles nothing: without `guidance` the scale
    is 1, whatever `how` says. What steers (`make_guides`) reads the rows `guide_0`, `guide_1`, ...

    Args:
        as_float: float32 in [-1, 1] instead of uint8.
    """
    run_of, config, names = _decoder_run(find, how)
    chain = make_chain(find("decoder").recipe.diffusion, config)  # pyright: ignore

    def run(params: Any, rows: Rows) -> Array:
        images = finish(run_of(params, rows), len(chain))
        return images if as_float else to_uint8(images)

    steered = (how.clip_guidance, how.classifier_guidance)
    return RowProgram("decoder", ("decoder", config, steered, as_float, how.dtype), names, run)


def segment_program(find: Find, how: SamplingConfig) -> RowProgram:
    """A part of the decoder's chain: the rows of `decoder_program`, the state as `x`, `history_0`
    to `history_2`, and `first` and `last` [B] int32, equal in all rows → the state after the steps
    at index first, first - 1, ... last, and `clean`, the picture as it looks from there.

    Which steps is no part of the program: one compiled program runs any of them.
    """
    run_of, config, names = _decoder_run(find, how)

    def run(params: Any, rows: Rows) -> dict[str, Array]:
        chain = run_of(params, rows)

        def body(count: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            return chain.step(carry[0], rows["first"][0] - count)

        state = State(rows["x"], (rows["history_0"], rows["history_1"], rows["history_2"]))
        steps = rows["first"][0] - rows["last"][0] + 1
        state, clean = jax.lax.fori_loop(0, steps, body, (state, jnp.zeros_like(rows["x"])))
        return {**_state_rows(state), "clean": to_uint8(clean)}

    steered = (how.clip_guidance, how.classifier_guidance)
    return RowProgram("decoder", ("segment", config, steered, how.dtype), names, run)


def start_program(find: Find, how: SamplingConfig) -> RowProgram:
    """The rows of `decoder_program` → the state before the first step, for `segment_program`."""
    run_of, config, names = _decoder_run(find, how)
    return RowProgram(
        "decoder",
        ("start", config, how.dtype),
        names,
        lambda params, rows: _state_rows(run_of(params, rows).start()),
    )


def _state_rows(state: State) -> dict[str, Array]:
    return {"x": state.x, **{f"history_{i}": part for i, part in enumerate(state.history)}}


def _decoder_run(
    find: Find, how: SamplingConfig
) -> tuple[Callable[[Any, Rows], Run], SamplerConfig, tuple[str, ...]]:
    """((parameters, rows) → the decoder's chain, its sampler, the stages that it reads)."""
    find = computing_in(find, how.dtype)
    recipe: Any = find("decoder").recipe
    config = replace(how.decoder, guidance_scale=1.0)
    encode, guides = caption_encoder(find), make_guides(find, how)

    def run_of(params: Any, rows: Rows) -> Run:
        caption, empty = encode(params["clip"], rows)
        return decoder_run(
            recipe,
            params["decoder"],
            Condition(rows.get("embedding"), caption, empty, rows.get("negative_embedding")),
            config,
            keys=jax.random.wrap_key_data(rows["keys"]),
            x_T=rows.get("x_T"),
            noise=rows.get("noise"),
            guidance=rows.get("guidance"),
            gradients=[
                guide.follow(params, rows[f"guide_{number}"]) for number, guide in enumerate(guides)
            ],
        )

    return run_of, config, ("clip", "decoder", *(guide.stage for guide in guides))


def inversion_program(find: Find, how: SamplingConfig) -> RowProgram:
    """image uint8, tokens and, if it is given, embedding → the noise [B, S, S, 3] float32 from
    which the unguided decoder draws it."""
    find = computing_in(find, how.dtype)
    recipe: Any = find("decoder").recipe
    config = replace(how.decoder, guidance_scale=1.0)
    encode = caption_encoder(find)

    def run(params: Any, rows: Rows) -> Array:
        condition = Condition(rows.get("embedding"), *encode(params["clip"], rows))
        images = to_float(rows["image"])
        return invert_picture(recipe, params["decoder"], condition, config, images)

    return RowProgram("inversion", ("inversion", config, how.dtype), ("clip", "decoder"), run)


def upsampler_program(
    find: Find,
    how: SamplingConfig,
    size: int,
    name: str | None = None,
    *,
    has_last: bool,
    as_float: bool = False,
) -> RowProgram:
    """image uint8 or float32 in [-1, 1], keys and, if they are given, noise, known and keep →
    pictures of four times the side. The network sees the whole small picture, and of the large one
    what is kept (Nichol et al. 2022, section 2.3).

    Args:
        size: 256 or 1024, whose sampler is taken.
        name: of the stage; None is `upsampler_SIZE`.
        has_last: a stage `upsampler_SIZE_last` takes the last step (Karlo).
    """
    name = name or f"upsampler_{size}"
    recipe: Any = computing_in(find, how.dtype)(name).recipe
    config = {256: how.upsampler_256, 1024: how.upsampler_1024}[size]
    tiling = None if how.tile is None else TilingConfig(how.tile, how.tile_overlap)

    def run(params: Any, rows: Rows) -> Array:
        def upsample(group: Rows) -> Array:
            low_res = group["image"]
            known = None
            if "known" in group:
                known = Known(to_float(group["known"]), group["keep"])
            large = upsample_picture(
                recipe,
                params[name],
                to_float(low_res) if low_res.dtype == jnp.uint8 else low_res,
                jax.random.wrap_key_data(group["keys"]),
                config,
                tiling,
                last_params=params.get(f"{name}_last"),
                noise=group.get("noise"),
                known=known,
            )
            return large if as_float else to_uint8(large)

        return run_in_groups(upsample, rows, how.upsample_batch_size)

    names = (name, f"{name}_last") if has_last else (name,)
    key = (name, config, tiling, how.upsample_batch_size, as_float, how.dtype)
    return RowProgram(name, key, names, run)


def _clip_config(find: Find) -> CLIPConfig:
    recipe = find("clip").recipe
    assert isinstance(recipe, CLIPRecipe)
    return recipe.model


def caption_encoder(find: Find) -> Callable[[Any, Rows], tuple[Caption, Caption]]:
    """(CLIP's parameters, rows) → the encoded captions, and the negative ones, or the empty one in
    one row."""
    config, tokenizer = _clip_config(find), find("clip").tokenizer
    assert tokenizer is not None
    nothing = tokenizer([""])

    def encode(params: Any, rows: Rows) -> tuple[Caption, Caption]:
        away = rows.get("negative_tokens", jnp.asarray(nothing))
        return (
            encode_caption(config, params, rows["tokens"]),
            encode_caption(config, params, away),
        )

    return encode
