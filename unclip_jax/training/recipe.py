"""Every stage's recipe under its name, and recipes as JSON."""

from __future__ import annotations

from typing import Any

from unclip_jax.config import from_dict, to_dict
from unclip_jax.errors import UserError
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe

Recipe = CLIPRecipe | PriorRecipe | DecoderRecipe
STAGES = {"clip": CLIPRecipe, "prior": PriorRecipe, "decoder": DecoderRecipe}


def stage_of(recipe: Recipe) -> str:
    """'clip', 'prior' or 'decoder'."""
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
        raise UserError(f"stage is {stage!r} in the config: expected one of {', '.join(STAGES)}")
    return from_dict(STAGES[stage], fields)
