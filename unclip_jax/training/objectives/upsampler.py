"""A small picture → the large one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.models.known import known_channels
from unclip_jax.models.upsampler import Upsampler
from unclip_jax.training.degradations.low_resolution import (
    augment,
    make_low_resolution,
    random_crop,
)
from unclip_jax.training.masks import random_masks
from unclip_jax.training.objectives import Metrics, Objective, Params
from unclip_jax.training.objectives.conditions import to_float
from unclip_jax.training.objectives.denoising import denoising_loss
from unclip_jax.training.recipes.run import training_chain
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe


def make_upsampler_objective(recipe: UpsamplerRecipe) -> Objective:
    """The diffusion loss on random crops, given the spoiled small picture (Ramesh et al. 2022,
    section 2.1). There is nothing frozen, and the captions are not read.

    An inpainting upsampler sees all of the small picture and what random masks keep of the large
    one (Nichol et al. 2021, section 2.1)."""
    model = Upsampler(recipe.model)
    schedule = training_chain(recipe.diffusion)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        keys = jax.random.split(key, 6)
        images = jnp.repeat(batch["image"], recipe.crops, axis=0)
        x0 = to_float(random_crop(keys[0], images, recipe.crop_size))
        low_res, level = make_low_resolution(keys[1], x0, recipe.degradation), None
        if recipe.model.has_augmentation:
            highest = recipe.model.max_augmentation
            level = jax.random.uniform(keys[2], x0.shape[:1], maxval=highest)
            low_res = augment(low_res, level, jax.random.normal(keys[3], low_res.shape))
        known = None
        if recipe.model.is_inpainting:  # after the six keys of every upsampler
            keep = random_masks(jax.random.fold_in(key, 6), x0.shape[:3], recipe.masks)
            known = known_channels(x0, keep)
        inputs, rngs = (low_res, level, known), {"dropout": keys[5]}

        def predict(xt: Array, t: Array) -> Array:
            output: Any = model.apply({"params": params}, xt, t, *inputs, train=True, rngs=rngs)
            return output

        loss, metrics, _ = denoising_loss(recipe.diffusion, schedule, keys[4], x0, predict)
        return loss, metrics

    return objective
