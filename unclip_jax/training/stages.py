"""From a recipe to its network: the module, and its first parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.models.clip import CLIP
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.prior import PriorRecipe


def make_module(recipe: Recipe) -> nn.Module:
    """The Flax module that `recipe.model` describes."""
    if isinstance(recipe, CLIPRecipe):
        return CLIP(recipe.model)
    if isinstance(recipe, PriorRecipe):
        return DiffusionPrior(recipe.model)
    return Decoder(recipe.model)


def init_params(recipe: Recipe, key: Array) -> Any:
    """Random float32 parameters; trace it under `jax.jit` or `jax.eval_shape`."""
    return make_module(recipe).init(key, *_example_inputs(recipe))["params"]


def _example_inputs(recipe: Recipe) -> tuple[Array, ...]:
    """Zeros of the shapes that the module takes, one row."""
    if isinstance(recipe, CLIPRecipe):
        size = recipe.model.image_size
        tokens = jnp.zeros((1, recipe.model.context_length), jnp.int32)
        return jnp.zeros((1, size, size, 3)), tokens
    t = jnp.zeros(1, jnp.int32)
    embedding = jnp.zeros((1, recipe.model.embedding_width))
    if isinstance(recipe, PriorRecipe):
        length = recipe.model.context_length
        states = jnp.zeros((1, length, recipe.model.text_width))
        return embedding, t, embedding, states, jnp.ones((1, length), bool)
    size, length = recipe.model.unet.image_size, recipe.model.text.context_length
    image = jnp.zeros((1, size, size, recipe.model.unet.in_channels))
    tokens = jnp.zeros((1, length), jnp.int32)
    return image, t, embedding, jnp.ones(1, bool), tokens, jnp.ones((1, length), bool)
