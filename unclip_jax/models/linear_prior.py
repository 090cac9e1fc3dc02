"""The linear prior: image embedding = W text embedding + b, the baseline that a prior has to beat.

Kandinsky's ablation found it competitive (Razzhigaev et al. 2023). Two ways to its weights: the
closed form of ridge regression from sums over the data, or training the module with `linear_loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.clip import normalize
from unclip_jax.models.layers import Dense
from unclip_jax.models.limits import check_sizes


@dataclass(frozen=True)
class LinearPriorConfig:
    """Shape of the linear prior and how its closed form is regularised."""

    embedding_width: int = 768
    """Width of the CLIP embeddings."""
    ridge: float = 0.01
    """Penalty on the squared weights, in units of the mean variance of a text embedding's entries;
    0 is plain least squares."""

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.ridge < 0:
            raise UserError(f"ridge is {self.ridge}: give 0 or more")


class LinearPrior(nn.Module):
    """Predicts the image embedding with one matrix."""

    config: LinearPriorConfig

    @nn.compact
    def __call__(self, text_embedding: Array) -> Array:
        """[B, embedding_width] float32, unit norm → the same shape, not normalised."""
        return Dense(self.config.embedding_width, name="projection")(text_embedding)


def linear_loss(predicted: Array, image: Array) -> tuple[Array, dict[str, Array]]:
    """E ||W t + b - z||^2.

    Args:
        predicted: [B, E] float32.
        image: [B, E] float32, unit norm.
    Returns:
        the mean loss, and the mean cosine with the true embedding.
    """
    loss = jnp.mean(jnp.sum((predicted - image) ** 2, axis=-1))
    return loss, {"cosine": jnp.mean(jnp.sum(normalize(predicted) * image, axis=-1))}


@dataclass(frozen=True, eq=False)
class PairMoments:
    """Sums over the pairs seen so far, float64; those of two shards of the data add up."""

    count: int
    text: np.ndarray
    """[E], sum of the text embeddings."""
    image: np.ndarray
    """[E], sum of the image embeddings."""
    text_text: np.ndarray
    """[E, E], sum of outer products."""
    text_image: np.ndarray
    """[E, E]."""


def add_pairs(moments: PairMoments | None, text: np.ndarray, image: np.ndarray) -> PairMoments:
    """`moments` and one more batch.

    Args:
        moments: None before the first batch.
        text, image: [B, E], unit norm, rows that belong together.
    """
    x, y = np.asarray(text, np.float64), np.asarray(image, np.float64)
    if moments is None:
        row, matrix = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
        moments = PairMoments(0, row, row, matrix, matrix)
    return PairMoments(
        moments.count + len(x),
        moments.text + x.sum(axis=0),
        moments.image + y.sum(axis=0),
        moments.text_text + x.T @ x,
        moments.text_image + x.T @ y,
    )


def fit_linear(moments: PairMoments, config: LinearPriorConfig) -> dict[str, Any]:
    """Parameters of `LinearPrior` that minimise E ||W t + b - z||^2 + ridge s ||W||^2.

    s is the mean variance of the text embedding's entries; b is not penalised, so W follows from
    covariances: (C_tt + ridge s I) W = C_tz and b = E z - W^T E t.

    Returns:
        {"projection": {"kernel": [E, E], "bias": [E]}} float32.
    """
    mean_text, mean_image = moments.text / moments.count, moments.image / moments.count
    covariance = moments.text_text / moments.count - np.outer(mean_text, mean_text)
    cross = moments.text_image / moments.count - np.outer(mean_text, mean_image)
    width = len(mean_text)
    penalty = config.ridge * np.trace(covariance) / width
    # lstsq and not solve: without a ridge, and fewer pairs than dimensions, there are many answers.
    kernel = np.linalg.lstsq(covariance + penalty * np.eye(width), cross, rcond=None)[0]
    bias = mean_image - mean_text @ kernel
    return {"projection": {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}


def sample_linear_prior(
    config: LinearPriorConfig,
    params: Any,
    text_embedding: Array,
    text_states: Array,
    text_mask: Array,
    keys: Array,
) -> Array:
    """Image embeddings for captions. Only the text embedding is read: there is nothing to draw.

    Args:
        text_embedding: [B, embedding_width] float32, unit norm.
    Returns:
        [B, embedding_width] float32, unit norm.
    """
    del text_states, text_mask, keys
    predicted: Any = LinearPrior(config).apply({"params": params}, text_embedding)
    return normalize(predicted)
