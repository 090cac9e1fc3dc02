"""What the cheap priors minimise."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from unclip_jax.models.clip import CLIP, CLIPConfig
from unclip_jax.models.linear_prior import LinearPrior, linear_loss
from unclip_jax.models.one_step_prior import OneStepPrior, one_step_loss
from unclip_jax.training.objectives import Metrics, Objective, Params
from unclip_jax.training.objectives.conditions import encode_pairs
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe, OneStepPriorRecipe


def make_linear_prior_objective(recipe: LinearPriorRecipe, clip_config: CLIPConfig) -> Objective:
    """See `linear_loss`; `frozen` holds the weights of the CLIP."""
    model, clip = LinearPrior(recipe.model), CLIP(clip_config)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        pairs = encode_pairs(clip, frozen, batch)
        predicted: Any = model.apply({"params": params}, pairs.text)
        return linear_loss(predicted, pairs.image)

    return objective


def make_one_step_prior_objective(recipe: OneStepPriorRecipe, clip_config: CLIPConfig) -> Objective:
    """See `one_step_loss`; `frozen` holds the weights of the CLIP, whose temperature it uses."""
    model, clip = OneStepPrior(recipe.model), CLIP(clip_config)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        noise_key, dropout_key = jax.random.split(key)
        pairs = encode_pairs(clip, frozen, batch)
        predicted: Any = model.apply(
            {"params": params},
            jax.random.normal(noise_key, pairs.image.shape),
            pairs.text,
            pairs.states,
            pairs.mask,
            train=True,
            rngs={"dropout": dropout_key},
        )
        scale = jax.numpy.exp(frozen["logit_scale"])
        return one_step_loss(recipe.model, predicted, pairs.image, pairs.text, scale)

    return objective
