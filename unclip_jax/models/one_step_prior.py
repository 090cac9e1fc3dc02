"""The one-step prior: a small transformer that predicts the image embedding in a single pass.

ECLIPSE (Patel et al. 2023, arXiv 2312.04655): the diffusion prior's network without its timestep,
fed with Gaussian noise in place of the noised embedding, trained on the squared error and on a
contrastive loss against CLIP's text embeddings. 33M parameters instead of 1B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.clip import normalize
from unclip_jax.models.layers import layer_norm
from unclip_jax.models.prior import SCALE_PER_SQRT_WIDTH
from unclip_jax.models.transformer import Transformer, TransformerConfig, causal_mask


@dataclass(frozen=True)
class OneStepPriorConfig:
    """Shape of the prior, what it is conditioned on, and the weight of its second loss."""

    embedding_width: int = 768
    """Width of the CLIP embeddings."""
    text_width: int = 768
    """Width of the CLIP text encoder's hidden states."""
    context_length: int = 77
    transformer: TransformerConfig = TransformerConfig(width=512, depth=10, heads=16)
    contrastive_weight: float = 0.2
    """Factor on the contrastive loss; the paper found 0.2 to 0.4 to work."""
    embedding_scale: float | None = None
    """The network predicts unit-norm embeddings times this; None is that of the diffusion prior,
    0.5375 * sqrt(embedding_width)."""

    def __post_init__(self) -> None:
        if self.contrastive_weight < 0:
            raise UserError(f"contrastive_weight is {self.contrastive_weight}: give 0 or more")

    @property
    def scale(self) -> float:
        """The factor in force."""
        if self.embedding_scale is not None:
            return self.embedding_scale
        return SCALE_PER_SQRT_WIDTH * math.sqrt(self.embedding_width)


class OneStepPrior(nn.Module):
    """Predicts the scaled image embedding from noise and a caption."""

    config: OneStepPriorConfig

    @nn.compact
    def __call__(
        self,
        noise: Array,
        text_embedding: Array,
        text_states: Array,
        text_mask: Array,
        *,
        train: bool = False,
    ) -> Array:
        """
        Args:
            noise: [B, embedding_width] float32, standard normal.
            text_embedding: [B, embedding_width] float32, unit norm.
            text_states: [B, context_length, text_width] float32.
            text_mask: [B, context_length] bool, False at padding.
        Returns:
            [B, embedding_width] float32, scaled (see `OneStepPriorConfig.scale`).
        """
        c, width = self.config, self.config.transformer.width
        dtype = jnp.dtype(c.transformer.dtype)

        def project(name: str) -> nn.Dense:
            return nn.Dense(width, dtype=dtype, name=name)

        # A unit vector's entries are about 1/sqrt(width): bring them to the prediction's scale.
        text_token = project("text_embedding_projection")(text_embedding * c.scale)
        query = self.param("query", nn.initializers.normal(0.01), (width,))
        tail_B3D = jnp.stack(
            [
                text_token,
                project("noise_projection")(noise),
                jnp.broadcast_to(query.astype(dtype), text_token.shape),
            ],
            axis=1,
        )
        sequence = jnp.concatenate([project("text_projection")(text_states), tail_B3D], axis=1)
        length = c.context_length + 3
        positions = self.param(
            "positional_embedding", nn.initializers.normal(0.01), (length, width)
        )
        visible = jnp.concatenate([text_mask, jnp.ones((noise.shape[0], 3), bool)], axis=1)
        states = Transformer(c.transformer, name="transformer")(
            sequence + positions.astype(dtype),
            causal_mask(length) & visible[:, None, None, :],
            train=train,
        )
        last = layer_norm("norm_out")(states[:, -1])
        return nn.Dense(c.embedding_width, name="projection")(last).astype(jnp.float32)


def one_step_loss(
    config: OneStepPriorConfig, predicted: Array, image: Array, text: Array, logit_scale: Array
) -> tuple[Array, dict[str, Array]]:
    """Mean squared error + contrastive_weight * contrastive loss (ECLIPSE, section 3).

    The error is that of the scaled embeddings. The contrastive loss classifies, for each predicted
    embedding, which caption of the batch it belongs to: -log softmax_j(s <z_i, t_j>) at j = i.

    Args:
        predicted: [B, E] float32, output of `OneStepPrior`.
        image, text: [B, E] float32, unit norm, CLIP's embeddings of the pairs.
        logit_scale: scalar, the frozen CLIP's factor on cosines.
    Returns:
        the loss, and both parts with the mean cosine to the true embedding.
    """
    mse = jnp.mean((predicted - image * config.scale) ** 2)
    direction = normalize(predicted)
    logits = logit_scale * direction @ text.T
    own = jnp.arange(logits.shape[0])
    contrastive = -jnp.mean(jax.nn.log_softmax(logits, axis=1)[own, own])
    cosine = jnp.mean(jnp.sum(direction * image, axis=-1))
    metrics = {"mse": mse, "contrastive": contrastive, "cosine": cosine}
    return mse + config.contrastive_weight * contrastive, metrics


def sample_one_step_prior(
    config: OneStepPriorConfig,
    params: Any,
    text_embedding: Array,
    text_states: Array,
    text_mask: Array,
    keys: Array,
) -> Array:
    """Image embeddings for captions, one pass.

    Args:
        text_embedding: [B, embedding_width] float32, unit norm.
        text_states: [B, context_length, text_width] float32.
        text_mask: [B, context_length] bool.
        keys: [B] typed keys, for the noise.
    Returns:
        [B, embedding_width] float32, unit norm.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, (config.embedding_width,)))(keys)
    predicted: Any = OneStepPrior(config).apply(
        {"params": params}, noise, text_embedding, text_states, text_mask
    )
    return normalize(predicted)
