"""A Karlo of tiny size with random weights, in diffusers' layout, made without torch."""

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

_WIDTH = 16
_TOWER = TransformerConfig(width=_WIDTH, depth=2, heads=2, activation="quick_gelu")
_UNET = UNetConfig(
    image_size=16,
    channels=8,
    channel_mult=(1, 2),
    depth=(1,),
    attention_resolutions=(8,),
    head_channels=8,
    context_width=12,
    groups=4,
)


def write_tiny_karlo(folder: Path) -> None:
    """CLIP, prior, decoder to 16 x 16 and upsampler to 64 x 64."""
    clip = CLIPRecipe(
        model=CLIPConfig(_WIDTH, 16, 8, _TOWER, _TOWER, unit_embeddings=False),
        tokenizer=TokenizerConfig(),
        data=DataConfig(image_size=16),
    )
    prior = PriorRecipe(
        clip="",
        model=PriorConfig(
            _WIDTH,
            _WIDTH,
            77,
            TransformerConfig(width=16, depth=2, heads=2),
            embedding_scale=1.0,
            is_whitened=True,
        ),
        diffusion=DiffusionConfig(prediction="x0"),
    )
    decoder = DecoderRecipe(
        clip="",
        model=DecoderConfig(
            unet=_UNET,
            text=None,
            clip_text_width=_WIDTH,
            embedding_width=_WIDTH,
            embedding_scale=1.0,
            null_embedding="learned",
            masks_padding=True,
        ),
        diffusion=DiffusionConfig(variance="learned_range"),
        data=DataConfig(image_size=16),
    )
    large = UNetConfig(
        image_size=64,
        in_channels=6,
        out_channels=3,
        channels=8,
        channel_mult=(1, 2),
        depth=(1,),
        attention_resolutions=(),
        has_middle_attention=False,
        head_channels=8,
        time_norm="additive",
        groups=4,
    )
    upsampler = upsampler_recipe(large, DiffusionConfig())
    ones = np.ones(_WIDTH, np.float32)
    stages = {
        "clip": _stage(clip, 0),
        "prior": _stage(prior, 1, EmbeddingStatistics(0 * ones, ones)),
        "decoder": _stage(decoder, 2),
        "upsampler_256": _stage(upsampler, 3),
        "upsampler_256_last": _stage(upsampler, 4),
    }
    export_karlo_folder(stages, folder)


def _stage(recipe: Recipe, seed: int, statistics: EmbeddingStatistics | None = None) -> Stage:
    random = np.random.default_rng(seed)
    shapes: Any = jax.eval_shape(lambda: init_params(recipe, jax.random.key(0)))

    def fill(path: Any, leaf: Any) -> jax.Array:
        is_gain = path[-1].key == "scale"
        return jnp.asarray(0.2 * random.standard_normal(leaf.shape) + is_gain, jnp.float32)

    params = jax.tree_util.tree_map_with_path(fill, shapes)
    return Stage(recipe, params, clip_tokenizer(), 1, "tiny", statistics=statistics)
