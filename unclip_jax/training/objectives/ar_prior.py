"""Caption → the codes of the CLIP image embedding, one after the other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.models.ar_prior import ARPrior, code_loss
from unclip_jax.models.clip import CLIP, CLIPConfig
from unclip_jax.models.embedding_codes import encode, encode_dot
from unclip_jax.models.text import text_mask
from unclip_jax.training.objectives import Metrics, Objective, Params
from unclip_jax.training.objectives.conditions import encode_pairs
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe


def make_ar_prior_objective(
    recipe: ARPriorRecipe, clip_config: CLIPConfig, empty_tokens: np.ndarray
) -> Objective:
    """Cross-entropy of the codes (Ramesh et al. 2022, section 2.2).

    A dropped row has the empty caption, a zero text embedding and no dot product, as
    `generation.code_sampling.sample_codes` has in its unconditional branch.

    Args:
        clip_config: of the frozen CLIP; `frozen` is (its weights, the fitted `EmbeddingCodes`).
        empty_tokens: [L] int32, the empty caption.
    """
    model, clip = ARPrior(recipe.model), CLIP(clip_config)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        clip_params, codes = frozen
        drop_key, dropout_key = jax.random.split(key)
        pairs = encode_pairs(clip, clip_params, batch)
        is_dropped = jax.random.bernoulli(drop_key, recipe.text_drop, pairs.image.shape[:1])
        empty = jnp.asarray(empty_tokens)[None]
        nothing: Any = clip.apply({"params": clip_params}, empty, method=CLIP.encode_text)
        dot = encode_dot(codes, pairs.image, pairs.text)
        targets = encode(codes, pairs.image)
        logits: Any = model.apply(
            {"params": params},
            targets,
            jnp.where(is_dropped, recipe.model.null_dot, dot),
            jnp.where(is_dropped[:, None], 0.0, pairs.text),
            jnp.where(is_dropped[:, None, None], nothing[1], pairs.states),
            jnp.where(is_dropped[:, None], text_mask(empty), pairs.mask),
            train=True,
            rngs={"dropout": dropout_key},
        )
        return code_loss(logits, targets)

    return objective
