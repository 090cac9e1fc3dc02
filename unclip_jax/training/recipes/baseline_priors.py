"""Recipes of the cheap priors, which the paper's two have to beat."""

from __future__ import annotations

from dataclasses import dataclass

from unclip_jax.models.linear_prior import LinearPriorConfig
from unclip_jax.models.one_step_prior import OneStepPriorConfig
from unclip_jax.training.recipes.run import Run


@dataclass(frozen=True)
class LinearPriorRecipe(Run):
    """Train the linear prior on a frozen CLIP (Razzhigaev et al. 2023)."""

    clip: str = "emoji"
    """The CLIP it works for: a run folder, an exported folder, or a shipped model's name."""
    model: LinearPriorConfig = LinearPriorConfig()


@dataclass(frozen=True)
class OneStepPriorRecipe(Run):
    """Train the one-step contrastive prior on a frozen CLIP (ECLIPSE, Patel et al. 2023)."""

    clip: str = "emoji"
    """The CLIP it works for: a run folder, an exported folder, or a shipped model's name."""
    model: OneStepPriorConfig = OneStepPriorConfig()
