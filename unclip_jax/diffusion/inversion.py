"""From a sample back to the noise from which DDIM draws it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from unclip_jax.diffusion.clean import Denoise, clean_sample
from unclip_jax.diffusion.process import Prediction, Variance, eps_from_x0, v_from_x0_eps
from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.diffusion.steps import ddim_invert_step, ddim_solve_step


def ddim_invert(
    denoise: Denoise,
    schedule: Schedule,
    x0: Array,
    *,
    config: SamplerConfig,
    prediction: Prediction,
    variance: Variance = "fixed_small",
) -> Array:
    """The noise from which DDIM with eta 0 draws `x0`.

    With `config.iterations` 0, DDIM run backwards (Dhariwal & Nichol 2021, appendix F): N calls of
    the network for N steps. A reversed Euler step is not the exact inverse: the error falls with N.

    With k iterations, every step of the sampler is solved for what it started from, by fixed-point
    iteration as in AIDI (Pan et al. 2023): k N calls. The error falls by a factor of the order of
    1 / N with each of them (see `ddim_solve_step`). A sample whose chain was clipped by
    thresholding, or that no noise leads to, has no exact inverse.

    Args:
        denoise, schedule, prediction, variance: as for the `sample` that will follow.
        x0: [B, ...] float32. It is taken for the state at the chain's least noise, or with
            iterations for the sample itself.
        config: the thresholding and `iterations`; nothing else is read.
    Returns:
        x_T [B, ...] float32. Without iterations it is one step beyond the chain, where abar is 0.
    """
    if config.iterations:
        return _solve(denoise, schedule, x0, config, prediction, variance)
    timesteps = jnp.asarray(schedule.timesteps)
    rows = x0.shape[0]

    def body(xt: Array, index: Array) -> tuple[Array, None]:
        t = jnp.full((rows,), index)
        output = denoise(xt, jnp.full((rows,), timesteps[index]))
        clean, _ = clean_sample(schedule, config, prediction, variance, output, xt, t)
        return ddim_invert_step(schedule, clean, xt, t), None

    indices = jnp.arange(len(schedule), dtype=jnp.int32)
    x_T, _ = jax.lax.scan(body, x0.astype(jnp.float32), indices)
    return x_T


def _solve(
    denoise: Denoise,
    schedule: Schedule,
    x0: Array,
    config: SamplerConfig,
    prediction: Prediction,
    variance: Variance,
) -> Array:
    timesteps = jnp.asarray(schedule.timesteps)
    rows = x0.shape[0]

    def body(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        previous, v = carry
        t = jnp.full((rows,), index)

        def improve(iteration: int, guess: tuple[Array, Array]) -> tuple[Array, Array]:
            xt = guess[0]
            output = denoise(xt, jnp.full((rows,), timesteps[index]))
            clean, _ = clean_sample(schedule, config, prediction, variance, output, xt, t)
            v = v_from_x0_eps(schedule, clean, eps_from_x0(schedule, clean, xt, t), t)
            return ddim_solve_step(schedule, v, previous, t), v

        # v hardly changes from one level to the next: the last one is the first guess.
        guess = (ddim_solve_step(schedule, v, previous, t), v)
        return jax.lax.fori_loop(0, config.iterations, improve, guess), None

    start = x0.astype(jnp.float32)
    indices = jnp.arange(len(schedule), dtype=jnp.int32)
    (x_T, _), _ = jax.lax.scan(body, (start, jnp.zeros_like(start)), indices)
    return x_T
