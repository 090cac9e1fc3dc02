"""Sample grids while a stage trains: fixed prompts, fixed seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unclip_jax.training.loop import Preview
    from unclip_jax.training.weights import Stage


def make_preview(recipe: Any) -> Preview | None:
    """What draws the grid of a decoder in training, or None for stages that draw nothing.

    The prior of `log.preview_prior` makes the image embeddings; without one, the caption's own text
    embedding stands in for the image embedding (Ramesh et al. 2022, section 5.1).
    """
    from unclip_jax.training.recipes.decoder import DecoderRecipe

    if not isinstance(recipe, DecoderRecipe) or not recipe.log.preview_every:
        return None
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
