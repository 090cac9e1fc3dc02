"""One random timestep a row, the network's prediction, and its loss."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.losses import diffusion_loss
from unclip_jax.diffusion.process import q_sample, split_variance, to_x0
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.training.objectives import Metrics
from unclip_jax.training.recipes.run import DiffusionConfig


def denoising_loss(
    diffusion: DiffusionConfig,
    schedule: Schedule,
    key: Array,
    x0: Array,
    predict: Callable[[Array, Array], Array],
) -> tuple[Array, Metrics, Array]:
    """One random timestep a row: the mean loss, mean metrics and the predicted clean sample."""
    t_key, noise_key = jax.random.split(key)
    t = jax.random.randint(t_key, x0.shape[:1], 0, diffusion.num_timesteps)
    noise = jax.random.normal(noise_key, x0.shape)
    xt = q_sample(schedule, x0, t, noise)
    output = predict(xt, t)
    loss, metrics = diffusion_loss(
        schedule,
        output,
        x0,
        xt,
        t,
        noise,
        prediction=diffusion.prediction,
        variance=diffusion.variance,
        weighting=diffusion.weighting,
    )
    if diffusion.variance == "learned_range":
        output, _ = split_variance(output)
    predicted = to_x0(schedule, diffusion.prediction, output, xt, t)
    return jnp.mean(loss), jax.tree.map(jnp.mean, metrics), predicted
