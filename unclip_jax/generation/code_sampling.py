"""Draws codes from the autoregressive prior, one after the other, and turns them into embeddings.

Ramesh et al. 2022, section 2.2. Every row has its own key and code i is drawn with
`fold_in(key, i)`, so that a row is the same in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.guidance import classifier_free_guidance
from unclip_jax.errors import UserError
from unclip_jax.models.ar_prior import ARPriorConfig, decode_step, prefill
from unclip_jax.models.clip import normalize
from unclip_jax.models.embedding_codes import EmbeddingCodes, decode, draw_dot


@dataclass(frozen=True)
class CodeSamplerConfig:
    """How codes are drawn."""

    temperature: float = 1.0
    """Divides the logits, after guidance; 0 takes the most likely code."""
    top_p: float = 1.0
    """Draw from the fewest codes that have this probability together (Holtzman et al. 2020)."""
    guidance_scale: float = 1.0
    """Classifier-free guidance on the logits; 1 has none."""
    dot_quantile: float = 0.5
    """The dot product's token is drawn from its distribution above this quantile. The paper's best
    is 0.5, the top half."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature is {self.temperature} and top_p {self.top_p}: give 0 or more, and a "
                "share above 0 up to 1"
            )
        if not 0 <= self.dot_quantile < 1:
            raise UserError(f"dot_quantile is {self.dot_quantile}: give 0 up to, not including, 1")


def top_p_logits(logits: Array, top_p: float) -> Array:
    """-inf for all but the smallest set of codes with a probability of `top_p` or more together.

    Args:
        logits: [..., buckets] float32.
        top_p: in (0, 1].
    """
    order = jnp.argsort(-logits, axis=-1)
    probabilities = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # A rank for each code and not a threshold on its logit, which would keep all that tie.
    is_kept = jnp.take_along_axis(before < top_p, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(is_kept, logits, -jnp.inf)


def draw_codes(sampler: CodeSamplerConfig, logits: Array, keys: Array) -> Array:
    """[B, buckets] float32 and [B] typed keys → [B] int32."""
    if sampler.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampler.temperature
    if sampler.top_p < 1:
        logits = top_p_logits(logits, sampler.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def sample_codes(
    config: ARPriorConfig,
    sampler: CodeSamplerConfig,
    params: Any,
    dot: Array,
    text_embedding: Array,
    text_states: Array,
    text_mask: Array,
    empty: tuple[Array, Array],
    keys: Array,
) -> Array:
    """Codes for captions, under one `lax.scan` over the components.

    Guidance mixes the logits with those of the dropped condition: the empty caption, a zero text
    embedding and the null token of the dot product. Both branches run as one batch.

    Args:
        params: of `ARPrior`.
        dot: [B] int32, token of the wanted dot product.
        text_embedding: [B, embedding_width] float32, unit norm.
        text_states: [B, context_length, text_width] float32.
        text_mask: [B, context_length] bool.
        empty: states and mask of the empty caption, one row each; only guidance reads them.
        keys: [B] typed keys.
    Returns:
        [B, components] int32.
    """
    rows = dot.shape[0]
    condition = (dot, text_embedding, text_states, text_mask)
    is_guided = sampler.guidance_scale != 1.0
    if is_guided:
        nothing = (jnp.asarray(config.null_dot, dot.dtype), jnp.zeros(()), *empty)
        condition = jax.tree.map(
            lambda c, n: jnp.concatenate([c, jnp.broadcast_to(n, c.shape)]), condition, nothing
        )

    def draw(logits: Array, index: Array | int) -> Array:
        if is_guided:
            logits = classifier_free_guidance(logits[:rows], logits[rows:], sampler.guidance_scale)
        step_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        return draw_codes(sampler, logits, step_keys)

    def step(carry: tuple[Any, Array], index: Array) -> tuple[tuple[Any, Array], Array]:
        cache, last = carry
        read = jnp.concatenate([last, last]) if is_guided else last
        logits, cache = decode_step(config, params, cache, read, index - 1)
        code = draw(logits, index)
        return (cache, code), code

    logits, cache = prefill(config, params, *condition)
    first = draw(logits, 0)
    _, others = jax.lax.scan(step, (cache, first), jnp.arange(1, config.components))
    return jnp.concatenate([first[:, None], others.T], axis=1)


def sample_ar_prior(
    config: ARPriorConfig,
    sampler: CodeSamplerConfig,
    codes: EmbeddingCodes,
    empty: tuple[Array, Array],
    params: Any,
    text_embedding: Array,
    text_states: Array,
    text_mask: Array,
    keys: Array,
) -> Array:
    """Image embeddings for captions; arguments as `sample_codes`.

    The dot product's token is drawn from the upper part of its distribution, see `draw_dot`.

    Returns:
        [B, embedding_width] float32, unit norm.
    """
    # The codes take the numbers 0 to components - 1.
    dot_keys = jax.vmap(lambda key: jax.random.fold_in(key, config.components))(keys)
    dot = draw_dot(codes, dot_keys, sampler.dot_quantile)
    tokens = sample_codes(
        config, sampler, params, dot, text_embedding, text_states, text_mask, empty, keys
    )
    return normalize(decode(codes, tokens))
