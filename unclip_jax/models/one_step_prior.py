"""The one-step prior: a small transformer that predicts the image embedding in a single pass.

ECLIPSE (Patel et al. 2023, arXiv 2312.04655): the diffusion prior's network without its timestep,
fed with Gaussian noise in place of the noised embedding, trained on the squared error and on a
contrastive loss against CLIP's text embeddings. 33M parameters instead of 1B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.models.clip import normalize
from unclip_jax.models.layers import Dense
from unclip_jax.models.prior import PriorConfig, QuerySequence
from unclip_jax.models.transformer import TransformerConfig


@dataclass(frozen=True)
class OneStepPriorConfig(PriorConfig):
    """Shape of the prior, what it is conditioned on, and the weight of its second loss."""

    transformer: TransformerConfig = TransformerConfig(width=512, depth=10, heads=16)
    contrastive_weight: float = 0.2
    """Factor on the contrastive loss; the paper found 0.2 to 0.4 to work."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contrastive_weight < 0:
            raise UserError(f"contrastive_weight is {self.contrastive_weight}: give 0 or more")


class OneStepPrior(nn.Module):
    """Predicts the scaled image embedding from noise and a caption."""

    config: OneStepPriorConfig

    def setup(self) -> None:
        transformer = self.config.transformer
        self.noise_projection = Dense(transformer.width, dtype=jnp.dtype(transformer.dtype))
        self.sequence = QuerySequence(self.config, num_tokens=1)
        nn.share_scope(self, self.sequence)

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
        tokens = [self.noise_projection(noise)]
        return self.sequence(text_embedding, text_states, text_mask, tokens, train=train)


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
