"""What a run works on, as shapes: the batch, and the frozen CLIP where there is none yet."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from unclip_jax.data.tokenizer import clip_tokenizer
from unclip_jax.errors import UserError
from unclip_jax.models.embedding_codes import EmbeddingCodes
from unclip_jax.training.inputs import Inputs, check_fits_clip
from unclip_jax.training.recipe import ON_CLIP, Recipe
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe
from unclip_jax.training.recipes.classifier import ClassifierRecipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, exported_shapes


def abstract_inputs(recipe: Recipe, clip: CLIPRecipe | None) -> Inputs:
    """Inputs without data, whose arrays are shapes.

    Args:
        clip: of the CLIP that the recipe's `clip` will name; None for a stage without one.
    Raises:
        UserError: a stage that needs a CLIP and gets none, or another than it is made for.
    """
    if not isinstance(recipe, ON_CLIP):
        return Inputs(None, None)
    if clip is None:
        raise UserError(
            f"{recipe.clip} is not here, and the program holds its CLIP: name its recipe with "
            "--clip-recipe configs/dalle2/clip.py"
        )
    params = exported_shapes(jax.eval_shape(lambda key: init_params(clip, key), jax.random.key(0)))
    stage = Stage(clip, params, None, 0, "")
    check_fits_clip(recipe, stage)
    tokenizer = clip_tokenizer(clip.model.context_length)  # any will do for the shape of a caption
    codes = abstract_codes(recipe) if isinstance(recipe, ARPriorRecipe) else None
    return Inputs(None, tokenizer, stage, codes=codes)


def abstract_batch(
    recipe: Recipe, inputs: Inputs, sharding: Sharding | None = None
) -> dict[str, Any]:
    """Shapes of what `open_batches` yields, over all processes."""

    def shape(dtype: Any, *size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((recipe.batch_size, *size), dtype, sharding=sharding)

    tokens = 1
    if isinstance(recipe, CLIPRecipe):
        tokens = recipe.model.context_length
    elif isinstance(recipe, NoisedCLIPRecipe):
        tokens = recipe.model.clip.context_length
    elif inputs.clip is not None:
        assert isinstance(inputs.clip.recipe, CLIPRecipe)
        tokens = inputs.clip.recipe.model.context_length
    else:
        assert isinstance(recipe, UpsamplerRecipe | ClassifierRecipe)
    side = recipe.data.image_size
    batch = {"tokens": shape(jnp.int32, tokens)}
    if recipe.data.embeddings is None or getattr(recipe.model, "unet", None) is not None:
        batch["image"] = shape(jnp.uint8, side, side, 3)
    if recipe.data.embeddings is not None and isinstance(recipe, ON_CLIP):
        assert recipe.model.embedding_width is not None
        batch["image_embedding"] = shape(jnp.float32, recipe.model.embedding_width)
    return batch


def abstract_codes(recipe: ARPriorRecipe) -> EmbeddingCodes:
    """Shapes of the codes of an autoregressive prior."""
    c = recipe.model

    def shape(*size: int) -> Any:
        return jax.ShapeDtypeStruct(size, jnp.float32)

    return EmbeddingCodes(
        mean=shape(c.embedding_width),
        axes=shape(c.components, c.embedding_width),
        edges=shape(c.components, c.buckets + 1),
        dot_edges=shape(c.dot_buckets + 1),
        dot_shares=shape(c.dot_buckets),
    )
