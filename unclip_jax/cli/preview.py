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
        draws_text = not recipe.model.is_inpainting
        return _decoder_preview(recipe) if draws_text else _inpainting_preview(recipe)
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


def _inpainting_preview(recipe: DecoderRecipe) -> Preview:
    """`log.preview_columns` pictures of the data, evenly spaced, each with its own caption and CLIP
    embedding. Rows: what a random mask keeps, what is drawn there, the truth."""
    import jax
    import numpy as np

    from unclip_jax.data.captions import all_captions
    from unclip_jax.data.images import make_grid, save_png
    from unclip_jax.diffusion.samplers import SamplerConfig
    from unclip_jax.generation.keys import image_keys
    from unclip_jax.generation.sampling import SamplingConfig
    from unclip_jax.pipeline import UnCLIP
    from unclip_jax.training.masks import random_masks
    from unclip_jax.training.weights import load_clip

    log, clip = recipe.log, load_clip(recipe.clip)
    count = log.preview_columns
    truth, records = _pictures(recipe, count)
    keep = np.asarray(random_masks(jax.random.key(0), truth.shape[:3], recipe.masks))
    texts = [next(iter(all_captions(record.captions)), "") for record in records]
    config = SamplerConfig(
        method="ddim", num_steps=log.preview_steps, guidance_scale=log.preview_guidance
    )
    sampling = SamplingConfig(decoder=config, batch_size=count)
    embeddings = None
    if recipe.model.embedding_width is not None:
        embeddings = UnCLIP({"clip": clip}, sampling).encode_image(truth)
    compiled: dict[Any, Any] = {}

    def preview(stage: Stage, path: Path) -> None:
        own = replace(stage, clip_id=clip.clip_id)
        bundle = UnCLIP({"clip": clip, "decoder_inpaint": own}, sampling, "", compiled)
        drawn = bundle.decode_known(truth, keep, embeddings, texts, image_keys(0, range(count)))
        shown = np.where(keep, truth, 127).astype(np.uint8)
        save_png(path, make_grid(np.concatenate([shown, drawn, truth]), count))

    return preview


def _pictures(recipe: DecoderRecipe | UpsamplerRecipe, count: int) -> tuple[Any, list[Any]]:
    """Pictures of the recipe's data [N, S, S, 3] uint8, evenly spaced, and their records; another
    takes the place of one that cannot be read, which the run counts for itself."""
    import numpy as np

    from unclip_jax.data.bad_records import BadRecords
    from unclip_jax.data.example_order import first_readable
    from unclip_jax.data.picture_reader import PictureReader
    from unclip_jax.data.sources import open_source

    source = open_source(recipe.data)
    load = PictureReader(source, recipe.data.image_size, BadRecords()).load
    rows = np.linspace(0, len(source) - 1, count).astype(int)
    found = [
        first_readable(load, example=place, index=int(row), seed=0, total=len(source))
        for place, row in enumerate(rows)
    ]
    return np.stack([image for image, _ in found]), [record for _, record in found]


def _upsampler_preview(recipe: UpsamplerRecipe) -> Preview:
    """`log.preview_columns` pictures of the data, evenly spaced. Rows: the small pictures, bicubic
    resizing, the upsampler, the truth."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from unclip_jax.data.images import make_grid, save_png
    from unclip_jax.diffusion.samplers import SamplerConfig
    from unclip_jax.generation.decoder import to_uint8
    from unclip_jax.generation.keys import image_keys
    from unclip_jax.generation.upsampler import upsample_picture
    from unclip_jax.models.upsampler import FACTOR
    from unclip_jax.training.degradations.low_resolution import downsample
    from unclip_jax.training.objectives.conditions import to_float

    count = recipe.log.preview_columns
    truth, _ = _pictures(recipe, count)
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
