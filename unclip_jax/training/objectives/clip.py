"""Pictures and captions that belong together lie together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.models.clip import CLIP
from unclip_jax.training.objectives import Metrics, Objective, Params
from unclip_jax.training.objectives.conditions import to_float
from unclip_jax.training.recipes.clip import CLIPRecipe


def softmax_loss(image: Array, text: Array, logit_scale: Array) -> tuple[Array, Array]:
    """CLIP's symmetric cross-entropy over all pairs of the batch (Radford et al. 2021, figure 3).

    Args:
        image, text: [B, E] float32, unit norm; row i of one belongs to row i of the other.
        logit_scale: scalar factor on the cosines.
    Returns:
        the loss, and the share of pictures whose own caption is nearest.
    """
    logits = logit_scale * image @ text.T
    own = jnp.arange(logits.shape[0])
    to_text = -jnp.mean(jax.nn.log_softmax(logits, axis=1)[own, own])
    to_image = -jnp.mean(jax.nn.log_softmax(logits, axis=0)[own, own])
    return (to_text + to_image) / 2, jnp.mean(jnp.argmax(logits, axis=1) == own)


def sigmoid_loss(
    image: Array, text: Array, logit_scale: Array, logit_bias: Array
) -> tuple[Array, Array]:
    """SigLIP: a binary decision for each pair (Zhai et al. 2023, equation 1), summed over texts.

    Arguments and returns as `softmax_loss`; `logit_bias` is a scalar.
    """
    logits = logit_scale * image @ text.T + logit_bias
    size = logits.shape[0]
    sign = 2 * jnp.eye(size) - 1
    loss = -jnp.sum(jax.nn.log_sigmoid(sign * logits)) / size
    return loss, jnp.mean(jnp.argmax(logits, axis=1) == jnp.arange(size))


def make_clip_objective(recipe: CLIPRecipe) -> Objective:
    """Contrastive loss over the global batch; with `optim.accumulate`, over each micro-batch."""
    model = CLIP(recipe.model)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        out: Any = model.apply(
            {"params": params},
            to_float(batch["image"]),
            batch["tokens"],
            train=True,
            rngs={"dropout": key},
        )
        if recipe.loss == "softmax":
            loss, accuracy = softmax_loss(out["image"], out["text"], out["logit_scale"])
        else:
            loss, accuracy = sigmoid_loss(
                out["image"], out["text"], out["logit_scale"], out["logit_bias"]
            )
        return loss, {"accuracy": accuracy, "logit_scale": out["logit_scale"]}

    return objective
