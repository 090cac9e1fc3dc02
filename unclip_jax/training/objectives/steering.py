"""What the networks minimise that steer a sampler: both see pictures at random noise levels."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from unclip_jax.diffusion.process import q_sample
from unclip_jax.diffusion.schedule import Schedule, make_schedule
from unclip_jax.models.classifier import Classifier
from unclip_jax.models.noised_clip import NoisedCLIP
from unclip_jax.training.contrastive import make_contrastive_loss
from unclip_jax.training.objectives import Metrics, Objective, Params
from unclip_jax.training.objectives.conditions import to_float
from unclip_jax.training.recipes.classifier import ClassifierRecipe
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe


def make_noised_clip_objective(
    recipe: NoisedCLIPRecipe, mesh: Mesh | None = None, axes: tuple[str, ...] = ()
) -> Objective:
    """CLIP's loss with x_t in place of the picture (Nichol et al. 2021, section 2.4).

    Args:
        mesh, axes: where the rows are, see `make_contrastive_loss`.
    """
    model = NoisedCLIP(recipe.model)
    schedule = make_schedule(recipe.schedule, recipe.model.num_timesteps)
    contrastive = make_contrastive_loss(recipe.loss, mesh=mesh, axes=axes)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        noise_key, dropout_key = jax.random.split(key)
        xt, t = _noised(schedule, noise_key, batch["image"])
        out: Any = model.apply(
            {"params": params}, xt, t, batch["tokens"], train=True, rngs={"dropout": dropout_key}
        )
        loss, accuracy = contrastive(
            out["image"], out["text"], out["logit_scale"], out["logit_bias"]
        )
        return loss, {"accuracy": accuracy, "logit_scale": out["logit_scale"]}

    return objective


def make_classifier_objective(recipe: ClassifierRecipe) -> Objective:
    """Cross-entropy of the class of x_t, mean over the rows that have one.

    `batch["tokens"]` is [B, 1] int32, the class or -1, as `make_labeler` gives it.
    """
    model = Classifier(recipe.model)
    schedule = make_schedule(recipe.schedule, recipe.num_timesteps)

    def objective(
        params: Params, frozen: Params, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Metrics]:
        noise_key, dropout_key = jax.random.split(key)
        xt, t = _noised(schedule, noise_key, batch["image"])
        logits: Any = model.apply(
            {"params": params}, xt, t, train=True, rngs={"dropout": dropout_key}
        )
        labels = batch["tokens"][:, 0]
        has_class = labels >= 0
        count = jnp.maximum(jnp.sum(has_class), 1)
        own = jnp.maximum(labels, 0)[:, None]
        likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), own, axis=1)[:, 0]
        hits = (jnp.argmax(logits, axis=1) == labels) & has_class
        loss = -jnp.sum(likelihood * has_class) / count
        return loss, {"accuracy": jnp.sum(hits) / count, "labelled": jnp.mean(has_class)}

    return objective


def make_labeler(classes: Sequence[str]) -> Callable[[Sequence[str]], np.ndarray]:
    """Captions → [n, 1] int32: the first class that a caption has as whole words, or -1."""
    words = [re.compile(rf"(?<!\w){re.escape(name.lower())}(?!\w)") for name in classes]

    def label(captions: Sequence[str]) -> np.ndarray:
        found = [
            next((i for i, pattern in enumerate(words) if pattern.search(text.lower())), -1)
            for text in captions
        ]
        return np.array(found, np.int32).reshape(-1, 1)

    return label


def _noised(schedule: Schedule, key: Array, images: Array) -> tuple[Array, Array]:
    """x_t and t, one random timestep a row, from uint8 pictures."""
    t_key, noise_key = jax.random.split(key)
    x0 = to_float(images)
    t = jax.random.randint(t_key, x0.shape[:1], 0, len(schedule))
    return q_sample(schedule, x0, t, jax.random.normal(noise_key, x0.shape)), t
