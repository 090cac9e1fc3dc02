"""A network under its conditions, as the samplers call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.guidance import classifier_free_guidance, scale_in_interval
from unclip_jax.diffusion.samplers import SamplerConfig, sampling_schedule
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.training.recipes.run import DiffusionConfig, training_chain


def make_chain(diffusion: DiffusionConfig, config: SamplerConfig) -> Schedule:
    """The steps of the training chain that `config` visits."""
    return sampling_schedule(training_chain(diffusion), config)


def make_guided(
    run: Callable[[Array, Array, Any], Array],
    condition: Any,
    nothing: Any,
    config: SamplerConfig,
    *,
    has_variance: bool,
    scale: Array | None = None,
    prepare: Callable[[Any], Any] = lambda condition: condition,
) -> Callable[[Array, Array], Array]:
    """The network under its condition, guided away from `nothing` (one row) if the scale is not 1.

    Both branches run as one batch of twice the rows, the conditional alone at the steps outside
    `config.guidance_interval`.

    Args:
        run: (x_t, t, what `prepare` made of the condition) → the network's output.
        scale: [B] float32, of each row; None is the config's, for all.
        prepare: what the network computes of its condition alone, once for all steps.
    """
    if scale is None and config.guidance_scale == 1.0:
        prepared = prepare(condition)
        return lambda xt, t: run(xt, t, prepared)
    scales = config.guidance_scale if scale is None else scale
    both = prepare(
        jax.tree.map(
            lambda c, n: jnp.concatenate([c, jnp.broadcast_to(n, c.shape)]), condition, nothing
        )
    )

    def guided(xt: Array, t: Array) -> Array:
        output = run(jnp.concatenate([xt, xt]), jnp.concatenate([t, t]), both)
        conditional, unconditional = jnp.split(output, 2)
        return classifier_free_guidance(
            conditional,
            unconditional,
            scale_in_interval(scales, t, config.guidance_interval),
            rescale=config.guidance_rescale,
            learned_variance=has_variance,
        )

    if config.guidance_interval is None:
        return guided
    low, high = config.guidance_interval
    alone = prepare(condition)

    def unguided(xt: Array, t: Array) -> Array:
        return run(xt, t, alone).astype(jnp.float32)

    def denoise(xt: Array, t: Array) -> Array:
        is_guided = jnp.any((t >= low) & (t <= high))  # a step is the same for all rows
        return jax.lax.cond(is_guided, guided, unguided, xt, t)

    return denoise
