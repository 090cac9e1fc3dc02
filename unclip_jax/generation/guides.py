"""The networks of a model that steer its decoder, read from prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.samplers import Gradient
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.generation.steering import make_classifier_steering, make_clip_steering
from unclip_jax.models.classifier import Classifier
from unclip_jax.models.noised_clip import NoisedCLIP
from unclip_jax.training.objectives.steering import make_labeler
from unclip_jax.training.recipes.classifier import ClassifierRecipe
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe
from unclip_jax.training.weights import Stage


@dataclass(frozen=True)
class Guide:
    """One network that steers."""

    stage: str
    read: Callable[[Sequence[str]], np.ndarray]
    """Prompts → what the network is asked about each, [B, ...] int32."""
    follow: Callable[[Any, Array], Gradient]
    """(parameters of all stages, rows that `read` made) → the gradient that is followed."""


def make_guides(find: Callable[[str], Stage], sampling: SamplingConfig) -> list[Guide]:
    """Those that `sampling` gives a scale.

    Args:
        find: a stage by its name; UserError if the model has none.
    """
    guides = []
    if sampling.clip_guidance:
        guides.append(_by_clip(find("noised_clip"), sampling.clip_guidance))
    if sampling.classifier_guidance:
        guides.append(_by_class(find("classifier"), sampling.classifier_guidance))
    return guides


def _by_clip(stage: Stage, scale: float) -> Guide:
    assert isinstance(stage.recipe, NoisedCLIPRecipe) and stage.tokenizer is not None
    model = NoisedCLIP(stage.recipe.model)

    def follow(params: Any, tokens: Array) -> Gradient:
        own = params["noised_clip"]
        text: Any = model.apply({"params": own}, tokens, method=NoisedCLIP.encode_text)
        return make_clip_steering(model, own, text[0], scale)

    return Guide("noised_clip", stage.tokenizer, follow)


def _by_class(stage: Stage, scale: float) -> Guide:
    assert isinstance(stage.recipe, ClassifierRecipe)
    model = Classifier(stage.recipe.model)

    def follow(params: Any, labels: Array) -> Gradient:
        # A prompt that names no class is not steered.
        scales = jnp.where(labels[:, 0] >= 0, scale, 0.0)
        return make_classifier_steering(
            model, params["classifier"], jnp.maximum(labels[:, 0], 0), scales
        )

    return Guide("classifier", make_labeler(stage.recipe.classes), follow)
