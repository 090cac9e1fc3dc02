"""Sample grids while a stage trains: fixed prompts, fixed seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unclip_jax.training.loop import Preview
    from unclip_jax.training.recipes.decoder import DecoderRecipe
    from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
    from unclip_jax.training.weights import Stage


def make_preview(recipe: Any) -> Preview | None:
    """What draws the grid of a decoder or an upsampler in training, or None: other stages draw
    nothing, and `log.preview_every` may ask for none."""
    from unclip_jax.training.recipes.decoder import DecoderRecipe
    from unclip_jax.training.recipes.upsampler import UpsamplerRecipe

    if not recipe.log.preview_every:
        return None
    if isinstance(recipe, DecoderRecipe):
        return _decoder_preview(recipe)
    return _upsampler_preview(recipe) if isinstance(recipe, UpsamplerRecipe) else None


def _decoder_preview(recipe: DecoderRecipe) -> Preview:
    """A row for each prompt. The prior of `log.preview_prior` makes the image embeddings; without
    one, the caption's own text embedding stands in for it (Ramesh et al. 2022, section 5.1)."""
    import numpy as np

    from unclip_jax.data.images import make_grid, save_png
    from unclip_jax.diffusion.samplers import SamplerConfig
    from unclip_jax.generation.keys import image_keys
    from unclip_jax.generation.sampling import SamplingConfig
    from unclip_jax.pipeline import UnCLIP
    from unclip_jax.training.weights import load_clip, load_stage

    log = recipe.log
    clip = load_clip(recipe.clip)
    stages = {"clip": clip}
    if log.preview_prior:
        stages["prior"] = load_stage(log.preview_prior)
    config = SamplerConfig(
        method="ddim", num_steps=log.preview_steps, guidance_scale=log.preview_guidance
    )
    texts = [text for text in log.preview_prompts for _ in range(log.preview_columns)]
    keys = image_keys(0, [*range(log.preview_columns)] * len(log.preview_prompts))
    sampling = SamplingConfig(decoder=config, batch_size=len(texts))
    first = UnCLIP(stages, sampling)
    if "prior" not in stages:
        embeddings = np.repeat(first.encode_text(log.preview_prompts), log.preview_columns, axis=0)
    else:
        embeddings = first.sample_prior(texts, keys)
    compiled: dict[Any, Any] = {}

    def preview(stage: Stage, path: Path) -> None:
        own = replace(stage, clip_id=clip.clip_id)
        bundle = UnCLIP({"clip": clip, "decoder": own}, sampling, "", compiled)
        images = bundle.decode(embeddings, texts, keys)
        save_png(path, make_grid(images, log.preview_columns))

    return preview


def _upsampler_preview(recipe: UpsamplerRecipe) -> Preview:
    """`log.preview_columns` pictures of the data, evenly spaced. Rows: the small pictures, bicubic
    resizing, the upsampler, the truth."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax.data.images import make_grid, save_png
    from unclip_jax.data.picture_reader import read_picture
    from unclip_jax.data.sources import open_source
    from unclip_jax.diffusion.samplers import SamplerConfig
    from unclip_jax.generation.decoder import to_uint8
    from unclip_jax.generation.keys import image_keys
    from unclip_jax.generation.upsampler import upsample_picture
    from unclip_jax.models.upsampler import FACTOR
    from unclip_jax.training.degradations.low_resolution import downsample
    from unclip_jax.training.objectives.conditions import to_float

    count, source = recipe.log.preview_columns, open_source(recipe.data)
    rows = np.linspace(0, len(source) - 1, count).astype(int)
    truth = np.stack([read_picture(source, int(row), recipe.data.image_size)[0] for row in rows])
    small = downsample(to_float(jnp.asarray(truth)), FACTOR)
    nearest, bicubic = (
        np.asarray(to_uint8(jax.image.resize(small, truth.shape, how)))
        for how in ("nearest", "cubic")
    )
    config = SamplerConfig(method="ddim", num_steps=recipe.log.preview_steps)

    @jax.jit
    def draw(params: Any) -> Any:
        keys = image_keys(0, range(count))
        return to_uint8(upsample_picture(recipe, params, small, keys, config))

    def preview(stage: Stage, path: Path) -> None:
        drawn = np.asarray(draw(stage.params))
        save_png(path, make_grid(np.concatenate([nearest, bicubic, drawn, truth]), count))

    return preview
