"""Steering a sampler towards a class or a caption by a network that knows noisy pictures.

Dhariwal & Nichol 2021, section 4: a sampler that adds grad log p(y | x_t) to its score samples from
p(x | y). Nichol et al. 2021, section 2.4 put the agreement of a noised CLIP's two embeddings in
place of log p. `diffusion.samplers.sample(..., cond_fn=...)` takes the functions made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.models.classifier import Classifier
from unclip_jax.models.clip import normalize
from unclip_jax.models.noised_clip import NoisedCLIP

ConditionGradient = Callable[[Array, Array], Array]
"""(x_t [B, H, W, C] float32, t [B] int32) → scaled gradient of log p(y | x_t), as x_t."""


def make_classifier_steering(
    model: Classifier, params: Any, labels: Array, scale: Array | float = 1.0
) -> ConditionGradient:
    """scale * grad log p(labels | x_t) (Dhariwal & Nichol 2021, algorithms 1 and 2).

    Args:
        labels: [B] int32, the class of each picture.
        scale: scalar or [B]; the paper uses 0.5 to 10.
    Returns:
        A function of the noisy pictures and their original timestep indices.
    """

    def log_probability(x: Array, t: Array) -> Array:
        logits: Any = model.apply({"params": params}, x, t)
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)
        return jnp.sum(own)

    return _scaled(jax.grad(log_probability), scale)


def make_clip_steering(
    model: NoisedCLIP, params: Any, text_embedding: Array, scale: Array | float = 1.0
) -> ConditionGradient:
    """scale * grad (s f(x_t, t) · g(caption)), s the CLIP's temperature (Nichol et al. 2021).

    Args:
        text_embedding: [B, E] float32 of the same noised CLIP (`NoisedCLIP.encode_text`), of any
            norm.
        scale: scalar or [B]; GLIDE's best is 2.
    Returns:
        A function of the noisy pictures and their original timestep indices.
    """
    text = jax.lax.stop_gradient(normalize(text_embedding))
    temperature = jnp.exp(params["logit_scale"])

    def agreement(x: Array, t: Array) -> Array:
        image: Any = model.apply({"params": params}, x, t, method=NoisedCLIP.encode_image)
        return temperature * jnp.sum(normalize(image) * text)

    return _scaled(jax.grad(agreement), scale)


def _scaled(gradient: ConditionGradient, scale: Array | float) -> ConditionGradient:
    """A row's gradient is that of its own term of the sum: rows do not see each other."""

    def cond_fn(x: Array, t: Array) -> Array:
        factor = jnp.asarray(scale, jnp.float32)
        if factor.ndim == 1:
            factor = factor.reshape(factor.shape + (1,) * (x.ndim - 1))
        return factor * gradient(x, t)

    return cond_fn
