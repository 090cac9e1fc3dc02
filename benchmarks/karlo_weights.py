"""A Karlo of random weights at its architecture, or at a part of its width, in diffusers' layout.

Nothing is downloaded and speed does not ask what the weights are. They go out through the exporter
and come in through the importer, as published ones do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.config import DataConfig
from unclip_jax.data.tokenizer import TokenizerConfig, clip_tokenizer
from unclip_jax.interop.karlo.configs import upsampler_recipe
from unclip_jax.interop.karlo.export import export_karlo_folder
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.decoder import DecoderConfig
from unclip_jax.models.prior import PriorConfig
from unclip_jax.models.transformer import TransformerConfig
from unclip_jax.models.unet import UNetConfig
from unclip_jax.training.embedding_statistics import EmbeddingStatistics
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.run import DiffusionConfig
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage

STAGES = ("prior", "decoder", "upsampler_256", "upsampler_256_last")


def write_karlo(folder: Path, width: float) -> None:
    """CLIP and all stages.

    Args:
        width: of every network as a part of Karlo's, 1 for its 3.4 billion weights; depth, heads'
            number, steps and sides are Karlo's.
    """
    recipes = karlo_recipes(width)
    ones = np.ones(int(768 * width), np.float32)
    statistics = {"prior": EmbeddingStatistics(0 * ones, ones)}
    stages = {
        name: random_stage(recipe, seed, statistics.get(name))
        for seed, (name, recipe) in enumerate(recipes.items())
    }
    export_karlo_folder(stages, folder)


def karlo_recipes(width: float) -> dict[str, Recipe]:
    """The recipes of all stages (Karlo-v1-alpha's configs)."""

    def part(full: int) -> int:
        assert full * width % 1 == 0, f"{full} x {width} is no whole number"
        return int(full * width)

    def tower(full: int, depth: int) -> TransformerConfig:
        return TransformerConfig(part(full), depth, full // 64, activation="quick_gelu")

    embedding, text = part(768), tower(768, 12)
    clip = CLIPConfig(embedding, 224, 14, tower(1024, 2), text, unit_embeddings=False)
    unet = {"channels": part(320), "channel_mult": (1, 2, 3, 4), "depth": (3,)}
    unet |= {
        "head_channels": part(64),
        "groups": next(n for n in (32, 16, 8) if part(320) % n == 0),
    }
    decoder = UNetConfig(image_size=64, context_width=part(1536), **unet)
    large = UNetConfig(
        image_size=256,
        in_channels=6,
        out_channels=3,
        attention_resolutions=(),
        has_middle_attention=False,
        time_norm="additive",
        **unet,
    )
    prior = PriorConfig(
        embedding,
        embedding,
        77,
        TransformerConfig(part(2048), 20, 32),
        embedding_scale=1.0,
        is_whitened=True,
    )
    return {
        "clip": CLIPRecipe(
            model=clip, tokenizer=TokenizerConfig(), data=DataConfig(image_size=224)
        ),
        "prior": PriorRecipe(clip="", model=prior, diffusion=DiffusionConfig(prediction="x0")),
        "decoder": DecoderRecipe(
            clip="",
            model=DecoderConfig(
                unet=decoder,
                text=None,
                clip_text_width=embedding,
                embedding_width=embedding,
                embedding_scale=1.0,
                null_embedding="learned",
                masks_padding=True,
            ),
            diffusion=DiffusionConfig(variance="learned_range"),
        ),
        "upsampler_256": upsampler_recipe(large, DiffusionConfig()),
        "upsampler_256_last": upsampler_recipe(large, DiffusionConfig()),
    }


def random_stage(recipe: Recipe, seed: int, statistics: EmbeddingStatistics | None = None) -> Stage:
    """Kernels that keep the variance of what they read, and a little noise on everything else: a
    network as it is initialised computes nothing."""
    random = np.random.default_rng(seed)
    shapes: Any = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))

    def fill(path: Any, leaf: Any) -> Any:
        noise = random.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if name == "kernel":
            return jnp.asarray(0.5 * noise / np.sqrt(np.prod(leaf.shape[-4:-1])))
        return jnp.asarray(0.02 * noise + (name == "scale"))

    params = jax.tree_util.tree_map_with_path(fill, shapes)
    return Stage(recipe, params, clip_tokenizer(), 1, "random", statistics=statistics)
