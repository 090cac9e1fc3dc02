"""Pictures and captions that belong together lie together."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from unclip_jax.models.clip import CLIP
from unclip_jax.training.contrastive import make_contrastive_loss
from unclip_jax.training.crops import random_crops
from unclip_jax.training.objectives import Metrics, Objective, Params
from unclip_jax.training.objectives.conditions import to_float
from unclip_jax.training.recipes.clip import CLIPRecipe


def make_clip_objective(
    recipe: CLIPRecipe, mesh: Mesh | None = None, axes: tuple[str, ...] = ()
) -> Objective:
    """Contrastive loss over the global batch; with `optim.accumulate`, over each micro-batch.

    Args:
        mesh, axes: where the rows are, see `make_contrastive_loss`.
    """
    model = CLIP(recipe.model)
    contrastive = make_contrastive_loss(recipe.loss, mesh=mesh, axes=axes)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        image = to_float(batch["image"])
        if recipe.least_crop < 1:
            image = random_crops(jax.random.fold_in(key, 1), image, recipe.least_crop)
        out: Any = model.apply(
            {"params": params},
            image,
            batch["tokens"],
            train=True,
            rngs={"dropout": key},
        )
        scale = out["logit_scale"]
        loss, accuracy = contrastive(
            out["image"], out["text"], scale, out.get("logit_bias", 0 * scale)
        )
        return loss, {"accuracy": accuracy, "logit_scale": scale}

    return objective
