"""From noise to a sample: DDPM, DDIM and DDIM inversion, each a step function, and one scan.

A step takes (x_t, the network's output, t, noise) to x_{t-1}. All of them turn the output into x_0,
threshold it, and then draw from a Gaussian around a combination of x_0 and x_t:

    DDPM   q(x_{t-1} | x_t, x_0) with a fixed or learned variance   (Ho et al. 2020, eqs. 6-7)
    DDIM   sqrt(abar') x_0 + sqrt(1 - abar' - sigma^2) eps + sigma z,   abar' = abar_{t-1},
           sigma = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar')
                                                              (Song et al. 2021, eqs. 12 and 16)

Every row has its own key. Row i's x_T is drawn with fold_in(key_i, T), its noise at the step of
training index t with fold_in(key_i, t): a row does not depend on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.guidance import Thresholding, threshold
from unclip_jax.diffusion.process import (
    Prediction,
    Variance,
    eps_from_x0,
    extract,
    model_log_variance,
    posterior,
    split_variance,
    to_x0,
)
from unclip_jax.diffusion.schedule import Schedule, respace, spaced_timesteps
from unclip_jax.errors import UserError

Denoise = Callable[[Array, Array], Array]
"""(x_t [B, ...] float32, training timestep [B] int32) -> output [B, ...], guidance included."""

Step = Callable[[Array, Array, Array, Array | None], Array]
"""(x_t, output, t [B] int32 index into the chain, noise or None) -> x_{t-1} [B, ...] float32."""


@dataclass(frozen=True)
class SamplerConfig:
    """How one stage is sampled."""

    method: Literal["ddpm", "ddim"] = "ddpm"
    """ddpm draws noise at every step; ddim with eta 0 none."""
    num_steps: int | str = 250
    """Steps, or where they lie: 'ddim50', 'fast27', or steps a section such as '10,10,3,2,2'."""
    eta: float = 0.0
    """ddim only: 0 is deterministic, 1 draws as much noise as ddpm with the small variance."""
    thresholding: Thresholding = "static"
    """What is done to the predicted clean sample: none, static (clip) or dynamic."""
    limit: float = 1.0
    """Largest magnitude of clean data: 1 for pictures."""
    percentile: float = 0.995
    """dynamic only: the fraction of values that are not clipped."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is the plain conditional model."""

    def __post_init__(self) -> None:
        if self.method not in ("ddpm", "ddim"):
            raise UserError(f"method {self.method!r} is unknown: choose ddpm or ddim")
        if self.thresholding not in ("none", "static", "dynamic"):
            raise UserError(
                f"thresholding {self.thresholding!r} is unknown: choose none, static or dynamic"
            )
        if isinstance(self.num_steps, int) and self.num_steps < 1:
            raise UserError(f"num_steps is {self.num_steps}: give 1 or more")
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta is {self.eta}: give 0 to 1")
        if self.limit <= 0:
            raise UserError(f"limit is {self.limit}: give a positive number")
        if not 0 < self.percentile <= 1:
            raise UserError(f"percentile is {self.percentile}: give a fraction up to 1")


def sampling_schedule(schedule: Schedule, config: SamplerConfig) -> Schedule:
    """The part of the training chain that `config.num_steps` visits; raises UserError."""
    return respace(schedule, spaced_timesteps(len(schedule), config.num_steps))


def ddpm_step(
    schedule: Schedule, x0: Array, xt: Array, t: Array, noise: Array, log_variance: Array
) -> Array:
    """A draw around the posterior mean (Ho et al. 2020, algorithm 2); no noise at t = 0.

    Args:
        x0, xt, noise: [B, ...] float32.
        t: [B] int32 in [0, N).
        log_variance: [B, ...] or [B, 1, ...] float32.
    """
    mean, _ = posterior(schedule, x0, xt, t)
    deviation = jnp.where(_rows(t > 0, xt.ndim), jnp.exp(0.5 * log_variance), 0.0)
    return mean + deviation * noise


def ddim_step(
    schedule: Schedule, x0: Array, xt: Array, t: Array, noise: Array | None, *, eta: float
) -> Array:
    """The step of the module's docstring (Song et al. 2021, eqs. 12 and 16); x0 itself at t = 0.

    eps is the one that belongs to the given, thresholded x0.

    Args:
        x0, xt: [B, ...] float32.
        t: [B] int32 in [0, N).
        noise: [B, ...] float32, or None where eta is 0.
        eta: 0 to 1, a Python number: the factors are made of it in float64.
    """
    previous = schedule.alphas_bar_prev
    variance = eta**2 * schedule.posterior_variance
    eps = eps_from_x0(schedule, x0, xt, t)
    mean = extract(np.sqrt(previous), t, xt.ndim) * x0
    # At t = 0 and at eta = 1 the difference is 0 up to rounding, on either side.
    direction = np.sqrt(np.maximum(1 - previous - variance, 0))
    mean = mean + extract(direction, t, xt.ndim) * eps
    if noise is None:
        return mean
    return mean + extract(np.sqrt(variance), t, xt.ndim) * noise


def ddim_invert_step(schedule: Schedule, x0: Array, xt: Array, t: Array) -> Array:
    """x_{t+1} of the deterministic process (Dhariwal & Nichol 2021, appendix F).

    sqrt(abar_{t+1}) x_0 + sqrt(1 - abar_{t+1}) eps, where abar after the last step is 0.

    Args:
        x0, xt: [B, ...] float32.
        t: [B] int32 in [0, N).
    """
    following = np.append(schedule.alphas_bar[1:], 0.0)
    eps = eps_from_x0(schedule, x0, xt, t)
    mean = extract(np.sqrt(following), t, xt.ndim) * x0
    return mean + extract(np.sqrt(1 - following), t, xt.ndim) * eps


def make_step(
    schedule: Schedule,
    config: SamplerConfig,
    *,
    prediction: Prediction,
    variance: Variance = "fixed_small",
    variance_table: np.ndarray | None = None,
) -> Step:
    """The step (x_t, output, t, noise) -> x_{t-1} that `sample` repeats.

    Args:
        schedule: the chain of N steps, respaced.
        variance: what the network was trained with; `learned_range` outputs have 2C channels.
        variance_table: ddpm only: [N] float64, variances of the reverse kernels that replace
            `variance`, for example the analytic ones of Bao et al. 2022; entry 0 is never used.
    Raises:
        UserError: a table that does not belong to this chain.
    """
    if variance_table is not None and np.shape(variance_table) != (len(schedule),):
        raise UserError(
            f"variance_table has shape {np.shape(variance_table)}: give one variance for each of "
            f"the {len(schedule)} steps"
        )

    def step(xt: Array, output: Array, t: Array, noise: Array | None) -> Array:
        x0, values = _predicted_x0(schedule, config, prediction, variance, output, xt, t)
        if config.method == "ddim":
            return ddim_step(schedule, x0, xt, t, noise, eta=config.eta)
        if variance_table is not None:
            log_variance = extract(np.log(np.maximum(variance_table, 1e-20)), t, xt.ndim)
        else:
            log_variance = model_log_variance(schedule, variance, values, t, xt.ndim)
        assert noise is not None  # `sample` sees to it
        return ddpm_step(schedule, x0, xt, t, noise, log_variance)

    return step


def sample(
    denoise: Denoise,
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    config: SamplerConfig,
    prediction: Prediction,
    variance: Variance = "fixed_small",
    variance_table: np.ndarray | None = None,
    keys: Array | None = None,
    x_T: Array | None = None,
    noise: Array | None = None,
) -> Array:
    """Runs the chain from x_T to x_0 in one scan. Everything but the arrays is static under jit.

    Args:
        denoise: the network with its conditions and guidance; it gets the training timestep.
        schedule: the chain of N steps to run, as `sampling_schedule` returns it.
        shape: (B, ...) of the samples.
        config: method, eta and thresholding; num_steps and guidance_scale are not read here.
        prediction, variance, variance_table: see `make_step`.
        keys: [B] typed keys, one a row, from which all noise is drawn that is not given.
        x_T: [B, ...] float32, the start; standard normal by key if None.
        noise: [N, B, ...] float32, noise[t] for the step at index t of the chain, so that noise[0]
            is never used; by key if None.
    Returns:
        [B, ...] float32.
    Raises:
        UserError: arrays of another shape, or neither keys nor the noise that is needed.
    """
    rows = shape[0]
    needs_noise = config.method == "ddpm" or config.eta > 0
    _check("keys", keys, (rows,))
    _check("x_T", x_T, shape)
    _check("noise", noise, (len(schedule), *shape))
    if keys is None and (x_T is None or (needs_noise and noise is None)):
        raise UserError("sampling needs noise: give keys, or x_T and the noise of every step")
    if x_T is None:
        assert keys is not None
        start = row_noise(keys, schedule.num_train_timesteps, shape)
    else:
        start = x_T.astype(jnp.float32)
    step = make_step(
        schedule, config, prediction=prediction, variance=variance, variance_table=variance_table
    )
    timesteps = jnp.asarray(schedule.timesteps)

    def body(xt: Array, inputs: tuple[Array, Array | None]) -> tuple[Array, None]:
        index, z = inputs
        timestep = timesteps[index]
        if needs_noise and z is None:
            assert keys is not None
            z = row_noise(keys, timestep, shape)
        output = denoise(xt, jnp.full((rows,), timestep))
        return step(xt, output, jnp.full((rows,), index), z), None

    indices = jnp.arange(len(schedule), dtype=jnp.int32)
    inputs = (indices, noise if needs_noise else None)
    x0, _ = jax.lax.scan(body, start, inputs, reverse=True)
    return x0


def ddim_invert(
    denoise: Denoise,
    schedule: Schedule,
    x0: Array,
    *,
    config: SamplerConfig,
    prediction: Prediction,
    variance: Variance = "fixed_small",
) -> Array:
    """The noise from which DDIM with eta 0 draws `x0` (Dhariwal & Nichol 2021, appendix F).

    A reversed Euler step is not its exact inverse: the error falls with the number of steps.

    Args:
        denoise, schedule, prediction, variance: as for the `sample` that will follow.
        x0: [B, ...] float32, taken for the sample at the chain's least noise.
        config: the thresholding; nothing else is read.
    Returns:
        x_T [B, ...] float32.
    """
    timesteps = jnp.asarray(schedule.timesteps)
    rows = x0.shape[0]

    def body(xt: Array, index: Array) -> tuple[Array, None]:
        t = jnp.full((rows,), index)
        output = denoise(xt, jnp.full((rows,), timesteps[index]))
        clean, _ = _predicted_x0(schedule, config, prediction, variance, output, xt, t)
        return ddim_invert_step(schedule, clean, xt, t), None

    indices = jnp.arange(len(schedule), dtype=jnp.int32)
    x_T, _ = jax.lax.scan(body, x0.astype(jnp.float32), indices)
    return x_T


def row_noise(keys: Array, number: Array | int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise [B, ...] float32, row i with fold_in(keys[i], number).

    Args:
        keys: [B] typed keys.
        number: a timestep of the training chain, or its length T for x_T.
        shape: (B, ...).
    """

    def draw(key: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, number), shape[1:], jnp.float32)

    return jax.vmap(draw)(keys)


def _predicted_x0(
    schedule: Schedule,
    config: SamplerConfig,
    prediction: Prediction,
    variance: Variance,
    output: Array,
    xt: Array,
    t: Array,
) -> tuple[Array, Array | None]:
    """The thresholded clean sample, and the raw variance values if they are learned."""
    values = None
    if variance == "learned_range":
        output, values = split_variance(output)
    x0 = to_x0(schedule, prediction, output, xt, t)
    limits = {"limit": config.limit, "percentile": config.percentile}
    return threshold(x0, config.thresholding, **limits), values


def _rows(values: Array, ndim: int) -> Array:
    return values.reshape(values.shape + (1,) * (ndim - 1))


def _check(name: str, array: Array | None, shape: tuple[int, ...]) -> None:
    if array is not None and tuple(array.shape) != tuple(shape):
        raise UserError(f"{name} has shape {tuple(array.shape)}: this chain and batch need {shape}")
