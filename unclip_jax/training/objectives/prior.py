"""Caption → CLIP image embedding, by diffusion."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.models.clip import CLIP, CLIPConfig, normalize, stage_embedding
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.models.text import text_mask
from unclip_jax.training.objectives import Metrics, Objective, Params
from unclip_jax.training.objectives.conditions import drop_captions, image_embedding
from unclip_jax.training.objectives.denoising import denoising_loss
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.run import training_chain


def make_prior_objective(
    recipe: PriorRecipe, clip_config: CLIPConfig, empty_tokens: np.ndarray
) -> Objective:
    """E ||f(z_t, t, y) - z||^2 on scaled CLIP image embeddings (Ramesh et al. 2022, section 2.2).

    Args:
        clip_config: of the frozen CLIP, whose weights come as `frozen`.
        empty_tokens: [L] int32, the empty caption, which stands for a dropped one.
    """
    model, clip = DiffusionPrior(recipe.model), CLIP(clip_config)
    schedule = training_chain(recipe.diffusion)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        drop_key, noise_key, dropout_key = jax.random.split(key, 3)
        tokens = drop_captions(drop_key, recipe.text_drop, batch["tokens"], empty_tokens)
        embedding = image_embedding(clip, frozen, batch)
        text, states = clip.apply({"params": frozen}, tokens, method=CLIP.encode_text)

        def predict(xt: Array, t: Array) -> Array:
            output: Any = model.apply(
                {"params": params},
                xt,
                t,
                stage_embedding(clip_config, text),
                states,
                text_mask(tokens),
                train=True,
                rngs={"dropout": dropout_key},
            )
            return output

        x0 = embedding * recipe.model.scale
        loss, metrics, predicted = denoising_loss(
            recipe.diffusion, schedule, noise_key, x0, predict
        )
        cosine = jnp.sum(normalize(predicted) * normalize(embedding), axis=-1)
        return loss, {**metrics, "cosine": jnp.mean(cosine)}

    return objective
