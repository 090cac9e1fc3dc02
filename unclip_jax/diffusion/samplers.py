"""From noise to a sample: one scan that runs any of the samplers.

A step takes (x_t, the network's output, t, noise) to x_{t-1}. All of them turn the output into x_0
and threshold it. `steps` has DDPM and DDIM, `solvers` DPM-Solver++(2M) and UniPC, which also
remember the predictions before, and `inversion` goes from x_0 back to x_T.

Every row has its own key. Row i's x_T is drawn with fold_in(key_i, T), its noise at the step of
training index t with fold_in(key_i, t): a row does not depend on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.clean import Denoise, clean_sample, steered_sample
from unclip_jax.diffusion.inversion import ddim_invert
from unclip_jax.diffusion.process import Prediction, Variance, extract, model_log_variance
from unclip_jax.diffusion.sampler_config import SamplerConfig, sampling_schedule
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.diffusion.solvers import History, solver_step
from unclip_jax.diffusion.steps import ddim_step, ddpm_step
from unclip_jax.errors import UserError

__all__ = [
    "Denoise",
    "Gradient",
    "Run",
    "SamplerConfig",
    "State",
    "Step",
    "ddim_invert",
    "finish",
    "make_run",
    "make_step",
    "row_noise",
    "sample",
    "sampling_schedule",
    "split_draws",
]

Gradient = Callable[[Array, Array], Array]
"""(x_t [B, ...] float32, training timestep [B] int32) -> the gradient of log p(y | x_t) with
respect to x_t [B, ...], times whatever guidance scale it is to have."""

_SOLVERS = ("dpm_solver", "unipc")


Step = Callable[..., Array]
"""(x_t, output, t [B] int32 index into the chain, noise or None, gradient=None) -> x_{t-1} [B, ...]
float32."""


def make_step(
    schedule: Schedule,
    config: SamplerConfig,
    *,
    prediction: Prediction,
    variance: Variance = "fixed_small",
    variance_table: np.ndarray | None = None,
) -> Step:
    """The step (x_t, output, t, noise) -> x_{t-1} that `sample` repeats with ddpm and ddim.

    Args:
        schedule: the chain of N steps, respaced.
        variance: what the network was trained with; `learned_range` outputs have 2C channels.
        variance_table: ddpm only: [N] float64, variances of the reverse kernels that replace
            `variance`, for example those of `analytic_variance`; entry 0 is never used but with a
            gradient.
    Raises:
        UserError: a table that does not belong to this chain, or a solver, whose steps remember
            the ones before (`solvers.solver_step`).
    """
    if config.method in _SOLVERS:
        raise UserError(
            f"method {config.method!r} remembers its last steps: use `sample`, or `solver_step`"
        )
    advance = _make_plain_step(schedule, config, prediction, variance, variance_table)

    def step(
        xt: Array, output: Array, t: Array, noise: Array | None, gradient: Array | None = None
    ) -> Array:
        return advance(xt, output, t, noise, gradient)[0]

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
    cond_fn: Gradient | None = None,
    keys: Array | None = None,
    x_T: Array | None = None,
    noise: Array | None = None,
) -> Array:
    """Runs the chain from x_T to x_0 in one scan. Everything but the arrays is static under jit.

    Args:
        denoise: the network with its conditions and guidance; it gets the training timestep.
        schedule: the chain of N steps to run, as `sampling_schedule` returns it.
        shape: (B, ...) of the samples.
        config: method, eta, start_scale and thresholding; where the steps lie and how the network
            is guided is not read here.
        prediction, variance, variance_table: see `make_step`.
        cond_fn: gradient that steers the chain, for example of a classifier or of a CLIP that knows
            noise: ddpm moves the mean by variance * gradient (Dhariwal & Nichol 2021, algorithm 1),
            the others subtract sqrt(1 - abar) * gradient from eps (algorithm 2), between
            two thresholdings.
        keys: [B] typed keys, one a row, from which all noise is drawn that is not given.
        x_T: [B, ...] float32, the start as it is; start_scale times standard normal by key if None.
        noise: [N, B, ...] float32, noise[t] for the step at index t of the chain, so that noise[0]
            is never used; by key if None.
    Returns:
        [B, ...] float32.
    Raises:
        UserError: arrays of another shape, or neither keys nor the noise that is needed.
    """
    run = make_run(
        denoise,
        schedule,
        shape,
        config=config,
        prediction=prediction,
        variance=variance,
        variance_table=variance_table,
        cond_fn=cond_fn,
        keys=keys,
        x_T=x_T,
        noise=noise,
    )

    return finish(run, len(schedule))


class State(NamedTuple):
    """Between two steps."""

    x: Array
    """[B, ...] float32, x_t."""
    history: History
    """What a solver remembers."""


class Run(NamedTuple):
    """A chain to be run step by step: `step(state, index)` for index N - 1 down to 0."""

    start: Callable[[], State]
    step: Callable[[State, Array], tuple[State, Array]]
    """(state, [] int32 index into the chain) -> (the next state, what the clean sample looks like
    from here [B, ...] float32)."""


def finish(run: Run, num_steps: int) -> Array:
    """All steps of a run in one scan: x_0 [B, ...] float32."""

    def body(state: State, index: Array) -> tuple[State, None]:
        return run.step(state, index)[0], None

    indices = jnp.arange(num_steps, dtype=jnp.int32)
    return jax.lax.scan(body, run.start(), indices, reverse=True)[0].x


def make_run(
    denoise: Denoise,
    schedule: Schedule,
    shape: tuple[int, ...],
    *,
    config: SamplerConfig,
    prediction: Prediction,
    variance: Variance = "fixed_small",
    variance_table: np.ndarray | None = None,
    cond_fn: Gradient | None = None,
    keys: Array | None = None,
    x_T: Array | None = None,
    noise: Array | None = None,
) -> Run:
    """What `sample` scans over, for those who stop on the way; arguments and errors are its."""
    rows = shape[0]
    needs_noise = config.method == "ddpm" or config.eta > 0
    _check("keys", keys, (rows,))
    _check("x_T", x_T, shape)
    _check("noise", noise, (len(schedule), *shape))
    if keys is None and (x_T is None or (needs_noise and noise is None)):
        raise UserError("sampling needs noise: give keys, or x_T and the noise of every step")
    advance = _make_advance(schedule, config, prediction, variance, variance_table)
    timesteps = jnp.asarray(schedule.timesteps)

    def start() -> State:
        if x_T is None:
            assert keys is not None
            x = config.start_scale * row_noise(keys, schedule.num_train_timesteps, shape)
        else:
            x = x_T.astype(jnp.float32)
        return State(x, (x, jnp.zeros_like(x), jnp.zeros_like(x)))

    def step(state: State, index: Array) -> tuple[State, Array]:
        timestep, z = timesteps[index], None
        if needs_noise and noise is not None:
            z = noise[index]
        elif needs_noise:
            assert keys is not None
            z = row_noise(keys, timestep, shape)
        t, timestep = jnp.full((rows,), index), jnp.full((rows,), timestep)
        output = denoise(state.x, timestep)
        gradient = None if cond_fn is None else cond_fn(state.x, timestep)
        x, history, x0 = advance(state.x, state.history, output, t, z, gradient)
        return State(x, history), x0

    return Run(start, step)


def split_draws(draws: Array | None, num_steps: int) -> tuple[Array | None, Array | None]:
    """`x_T` and `noise` of `sample` from the noise in the order in which a sampler draws it.

    Args:
        draws: [B, N, ...] float32: x_T, then what each step but the last adds; [B, 1, ...] is
            enough for samplers that add none; None for noise by key.
        num_steps: N, of the chain.
    Raises:
        UserError: another number of draws.
    """
    if draws is None:
        return None, None
    if draws.shape[1] not in (1, num_steps):
        raise UserError(
            f"noise has {draws.shape[1]} draws for {num_steps} steps: give one for the start and "
            f"one for each step but the last, {num_steps} in all"
        )
    if draws.shape[1] == 1:
        return draws[:, 0], None
    # Steps run from the last index of the chain to 0, where none is added.
    added = jnp.moveaxis(draws[:, :0:-1], 1, 0)
    return draws[:, 0], jnp.concatenate([jnp.zeros_like(added[:1]), added])


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


def _make_advance(
    schedule: Schedule,
    config: SamplerConfig,
    prediction: Prediction,
    variance: Variance,
    variance_table: np.ndarray | None,
) -> Callable[..., tuple[Array, History, Array]]:
    """(x_t, history, output, t, noise, gradient) -> (x_{t-1}, history, x_0), by any method."""
    if config.method in _SOLVERS:

        def solve(
            xt: Array,
            history: History,
            output: Array,
            t: Array,
            noise: Array | None,
            gradient: Array | None,
        ) -> tuple[Array, History, Array]:
            x0, _ = clean_sample(schedule, config, prediction, variance, output, xt, t)
            x0 = steered_sample(schedule, config, x0, gradient, t)
            corrects = config.method == "unipc"
            return *solver_step(schedule, x0, xt, t, history, corrects=corrects), x0

        return solve
    step = _make_plain_step(schedule, config, prediction, variance, variance_table)

    def advance(xt: Array, history: History, *inputs: Array | None) -> tuple[Array, History, Array]:
        x, x0 = step(xt, *inputs)
        return x, history, x0

    return advance


def _make_plain_step(
    schedule: Schedule,
    config: SamplerConfig,
    prediction: Prediction,
    variance: Variance,
    variance_table: np.ndarray | None,
) -> Callable[..., tuple[Array, Array]]:
    """(x_t, output, t, noise, gradient) -> (x_{t-1}, x_0) of ddpm and ddim, see `make_step`."""
    if variance_table is not None and np.shape(variance_table) != (len(schedule),):
        raise UserError(
            f"variance_table has shape {np.shape(variance_table)}: give one variance for each of "
            f"the {len(schedule)} steps"
        )

    def step(
        xt: Array, output: Array, t: Array, noise: Array | None, gradient: Array | None
    ) -> tuple[Array, Array]:
        x0, values = clean_sample(schedule, config, prediction, variance, output, xt, t)
        if config.method == "ddim":
            x0 = steered_sample(schedule, config, x0, gradient, t)
            return ddim_step(schedule, x0, xt, t, noise, eta=config.eta), x0
        if variance_table is not None:
            log_variance = extract(np.log(np.maximum(variance_table, 1e-20)), t, xt.ndim)
        else:
            log_variance = model_log_variance(schedule, variance, values, t, xt.ndim)
        assert noise is not None  # `make_run` sees to it
        return ddpm_step(schedule, x0, xt, t, noise, log_variance, gradient), x0

    return step


def _check(name: str, array: Array | None, shape: tuple[int, ...]) -> None:
    if array is not None and tuple(array.shape) != tuple(shape):
        raise UserError(f"{name} has shape {tuple(array.shape)}: this chain and batch need {shape}")
