"""From a recipe to its network: the module, and its first parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.models.ar_prior import ARPrior
from unclip_jax.models.classifier import Classifier
from unclip_jax.models.clip import CLIP
from unclip_jax.models.decoder import Decoder
from unclip_jax.models.linear_prior import LinearPrior
from unclip_jax.models.noised_clip import NoisedCLIP
from unclip_jax.models.one_step_prior import OneStepPrior
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.models.upsampler import FACTOR, Upsampler
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe, OneStepPriorRecipe
from unclip_jax.training.recipes.classifier import ClassifierRecipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe


def make_module(recipe: Recipe) -> nn.Module:
    """The Flax module that `recipe.model` describes."""
    if isinstance(recipe, CLIPRecipe):
        return CLIP(recipe.model)
    if isinstance(recipe, PriorRecipe):
        return DiffusionPrior(recipe.model)
    if isinstance(recipe, ARPriorRecipe):
        return ARPrior(recipe.model)
    if isinstance(recipe, LinearPriorRecipe):
        return LinearPrior(recipe.model)
    if isinstance(recipe, OneStepPriorRecipe):
        return OneStepPrior(recipe.model)
    if isinstance(recipe, UpsamplerRecipe):
        return Upsampler(recipe.model)
    if isinstance(recipe, NoisedCLIPRecipe):
        return NoisedCLIP(recipe.model)
    if isinstance(recipe, ClassifierRecipe):
        return Classifier(recipe.model)
    return Decoder(recipe.model)


def init_params(recipe: Recipe, key: Array) -> Any:
    """Random float32 parameters; trace it under `jax.jit` or `jax.eval_shape`."""
    return make_module(recipe).init(key, *_example_inputs(recipe))["params"]


def _example_inputs(recipe: Recipe) -> tuple[Array | None, ...]:
    """Zeros of the shapes that the module takes, one row."""
    if isinstance(recipe, CLIPRecipe):
        size = recipe.model.image_size
        images = None if recipe.model.vision is None else jnp.zeros((1, size, size, 3))
        return images, _integers(recipe.model.context_length)
    t = jnp.zeros(1, jnp.int32)
    if isinstance(recipe, UpsamplerRecipe):
        # Convolutions alone: the parameters do not depend on the side.
        side = recipe.crop_size
        large, small = (jnp.zeros((1, size, size, 3)) for size in (side, side // FACTOR))
        return large, t, small, jnp.zeros(1)
    if isinstance(recipe, NoisedCLIPRecipe):
        size = recipe.model.clip.image_size
        return jnp.zeros((1, size, size, 3)), t, _integers(recipe.model.clip.context_length)
    if isinstance(recipe, ClassifierRecipe):
        size = recipe.model.encoder.image_size
        return jnp.zeros((1, size, size, recipe.model.encoder.in_channels)), t
    width = recipe.model.embedding_width
    embedding = None if width is None else jnp.zeros((1, width))
    if isinstance(recipe, LinearPriorRecipe):
        return (embedding,)
    if isinstance(recipe, PriorRecipe | ARPriorRecipe | OneStepPriorRecipe):
        length = recipe.model.context_length
        states = jnp.zeros((1, length, recipe.model.text_width))
        text = (embedding, states, jnp.ones((1, length), bool))
        if isinstance(recipe, PriorRecipe):
            return embedding, t, *text
        if isinstance(recipe, ARPriorRecipe):
            return _integers(recipe.model.components), t, *text
        return embedding, *text
    size, text = recipe.model.unet.image_size, recipe.model.text
    length = 1 if text is None else text.context_length  # no parameter depends on CLIP's
    image = jnp.zeros((1, size, size, 3))
    encoded = (embedding, jnp.zeros((1, length, recipe.model.clip_text_width)))
    caption = (_integers(length), jnp.ones((1, length), bool), *encoded)
    return image, t, embedding, jnp.ones(1, bool), *caption


def _integers(length: int) -> Array:
    return jnp.zeros((1, length), jnp.int32)
