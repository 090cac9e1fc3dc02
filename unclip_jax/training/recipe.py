"""Every stage's recipe under its name, and recipes as JSON."""

from __future__ import annotations

import reprlib
from typing import Any

from unclip_jax.config import from_dict, to_dict
from unclip_jax.errors import UserError, choose
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe
from unclip_jax.training.recipes.baseline_priors import LinearPriorRecipe, OneStepPriorRecipe
from unclip_jax.training.recipes.classifier import ClassifierRecipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe

AnyPriorRecipe = PriorRecipe | ARPriorRecipe | LinearPriorRecipe | OneStepPriorRecipe
SteeringRecipe = NoisedCLIPRecipe | ClassifierRecipe
Recipe = CLIPRecipe | AnyPriorRecipe | DecoderRecipe | UpsamplerRecipe | SteeringRecipe
STAGES = {
    "clip": CLIPRecipe,
    "prior": PriorRecipe,
    "ar_prior": ARPriorRecipe,
    "linear_prior": LinearPriorRecipe,
    "one_step_prior": OneStepPriorRecipe,
    "decoder": DecoderRecipe,
    "upsampler": UpsamplerRecipe,
    "noised_clip": NoisedCLIPRecipe,
    "classifier": ClassifierRecipe,
}
ON_CLIP = (PriorRecipe, ARPriorRecipe, LinearPriorRecipe, OneStepPriorRecipe, DecoderRecipe)
"""Stages that are trained for a frozen CLIP, named by their field `clip`."""


def stage_of(recipe: Recipe) -> str:
    """Its name in `STAGES`."""
    return next(name for name, cls in STAGES.items() if type(recipe) is cls)


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain data, with its stage."""
    return {"stage": stage_of(recipe), **to_dict(recipe)}


def recipe_from_json(data: dict[str, Any]) -> Recipe:
    """The inverse of `recipe_to_json`.

    Raises:
        UserError: the stage or a field is unknown, or a value has the wrong type.
    """
    fields = dict(data) if isinstance(data, dict) else {}
    stage = fields.pop("stage", None)
    if not isinstance(stage, str) or stage not in STAGES:
        raise UserError(
            f"stage is {reprlib.repr(stage)} in the config: {choose(str(stage), STAGES)}"
        )
    return from_dict(STAGES[stage], fields)
