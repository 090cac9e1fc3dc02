"""Drawing what is missing from a sample of which a part is known.

RePaint (Lugmayr et al. 2022) needs no training: after every step the known part is replaced by a
draw of q(x_{t-1} | x_0), so that the network sees it at the right noise level. One such pass joins
badly, because what was drawn could not move the known part and saw it only once. So the chain goes
back and forth: every `jump_length` steps it returns by q(x_t | x_{t-1}) and comes down again,
`resamples` times in all (the paper's figure 9 and algorithm 1).

A network that was trained to see the known part (GLIDE's inpainting networks) needs neither: its
prediction of x_0 is replaced where x_0 is known (`known_output`). Under DDIM the known part is then
c x_0 + n eps with one eps on all levels, under DDPM a draw of q(x_{t-1} | x_t, x_0).

Levels count states: N is pure noise, 0 the clean sample, and the step at index i of the chain goes
from level i + 1 to level i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.process import (
    Prediction,
    Variance,
    eps_from_x0,
    extract,
    q_sample,
    split_variance,
    v_from_x0_eps,
)
from unclip_jax.diffusion.samplers import Denoise, Gradient, SamplerConfig, make_step, row_noise
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.errors import UserError


class Known(NamedTuple):
    """What is known of a clean sample."""

    x0: Array
    """[B, ...] float32; what it holds where nothing is known is not read."""
    keep: Array
    """bool, of a shape that broadcasts to x0's: where x_0 is known."""


@dataclass(frozen=True)
class Resampling:
    """How often RePaint goes back and forth. It calls the network about `resamples` times as often
    as a plain chain."""

    jump_length: int = 5
    """Steps that it goes back at a time; the paper has 10 of 250."""
    resamples: int = 5
    """Times that each stretch is walked down; 1 never goes back; the paper has 10."""

    def __post_init__(self) -> None:
        for name in ("jump_length", "resamples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give 1 or more")


class Walk(NamedTuple):
    """The moves of a chain that goes back and forth, in order, K of them."""

    index: np.ndarray
    """[K] int32, the index of the chain whose step is made, or made undone."""
    is_back: np.ndarray
    """[K] bool, towards noise: from level index to level index + 1."""
    visit: np.ndarray
    """[K] int32, how often this index was moved over before, in either direction."""


def make_walk(num_steps: int, resampling: Resampling) -> Walk:
    """The moves from level N to level 0, as the authors' code schedules them.

    It jumps back from levels 1, 1 + jump_length, 1 + 2 jump_length, ... whenever it reaches one, as
    long as the jump stays in the chain, `resamples` - 1 times from each. A long jump meets the
    levels above again, where nothing is left to do.
    """
    length = resampling.jump_length
    left = dict.fromkeys(range(1, num_steps - length + 1, length), resampling.resamples - 1)
    moves: list[tuple[int, bool]] = []
    level = num_steps
    while level > 0:
        level -= 1
        moves.append((level, False))
        if left.get(level, 0) > 0:
            left[level] -= 1
            moves += [(level + step, True) for step in range(length)]
            level += length
    visits, seen = [], dict.fromkeys(range(num_steps), 0)
    for index, _ in moves:
        visits.append(seen[index])
        seen[index] += 1
    index, is_back = zip(*moves, strict=True)
    return Walk(np.asarray(index, np.int32), np.asarray(is_back), np.asarray(visits, np.int32))


def repaint(
    denoise: Denoise,
    schedule: Schedule,
    known: Known,
    *,
    config: SamplerConfig,
    resampling: Resampling,
    prediction: Prediction,
    variance: Variance = "fixed_small",
    cond_fn: Gradient | None = None,
    keys: Array | None = None,
    x_T: Array | None = None,
    noise: Array | None = None,
) -> Array:
    """Samples that are `known` where it is known, by RePaint (Lugmayr et al. 2022, algorithm 1).

    One scan; everything but the arrays is static under jit. With nothing known and one resample it
    is `sample`, noise by key included.

    Args:
        denoise: the network with its conditions and guidance; it gets the training timestep.
        schedule: the chain of N steps, respaced; going back adds the noise of *this* chain.
        config: its method (ddpm or ddim), eta, start_scale and thresholding are read.
        prediction, variance, cond_fn: see `samplers.sample`.
        keys: [B] typed keys, from which noise is drawn that is not given: x_T with fold_in(key, T),
            the noise of a move with fold_in(key, t + visit (T + 2)), see `Walk`.
        x_T: [B, ...] float32, standard normal noise that the chain starts from.
        noise: [K, B, ...] float32, a draw for each move of `make_walk`. Of a step the known part
            takes it for q(x_{t-1} | x_0), the rest for the sampler's own noise.
    Returns:
        [B, ...] float32, exactly x0 where it is kept.
    Raises:
        UserError: a solver, arrays of another shape, or neither keys nor noise.
    """
    walk, x0 = make_walk(len(schedule), resampling), known.x0.astype(jnp.float32)
    shape, keep = x0.shape, jnp.broadcast_to(known.keep, x0.shape)
    for name, array, wanted in (("x_T", x_T, shape), ("noise", noise, (len(walk.index), *shape))):
        if array is not None and tuple(array.shape) != tuple(wanted):
            raise UserError(
                f"{name} has shape {tuple(array.shape)}: this chain and batch need {wanted}"
            )
    if keys is None and (x_T is None or noise is None):
        raise UserError("repainting needs noise: give keys, or x_T and the noise of every move")
    step = make_step(schedule, config, prediction=prediction, variance=variance)
    draws = config.method == "ddpm" or config.eta > 0
    timesteps, period = jnp.asarray(schedule.timesteps), schedule.num_train_timesteps + 2

    def down(x: Array, index: Array, z: Array) -> Array:
        t, timestep = (jnp.full(shape[:1], one) for one in (index, timesteps[index]))
        gradient = None if cond_fn is None else cond_fn(x, timestep)
        drawn = step(x, denoise(x, timestep), t, z if draws else None, gradient)
        level = schedule.alphas_bar_prev
        noisy = extract(np.sqrt(level), t, x.ndim) * x0
        noisy = noisy + extract(np.sqrt(1 - level), t, x.ndim) * z
        return jnp.where(keep, noisy, drawn)

    def back(x: Array, index: Array, z: Array) -> Array:
        t = jnp.full(shape[:1], index)
        signal = extract(np.sqrt(1 - schedule.betas), t, x.ndim)
        return signal * x + extract(np.sqrt(schedule.betas), t, x.ndim) * z

    def move(x: Array, one: tuple[Array, ...]) -> tuple[Array, None]:
        index, is_back, visit, number = one
        if noise is None:
            assert keys is not None
            z = row_noise(keys, timesteps[index] + visit * period, shape)
        else:
            z = noise[number]
        return jax.lax.cond(is_back, back, down, x, index, z), None

    if x_T is None:
        assert keys is not None
        x_T = row_noise(keys, schedule.num_train_timesteps, shape)
    last = jnp.full(shape[:1], len(schedule) - 1)
    start = jnp.where(keep, q_sample(schedule, x0, last, x_T), config.start_scale * x_T)
    moves = (*(jnp.asarray(part) for part in walk), jnp.arange(len(walk.index)))
    found, _ = jax.lax.scan(move, start, moves)
    return jnp.where(keep, x0, found)


def known_output(
    denoise: Denoise,
    schedule: Schedule,
    known: Known,
    *,
    prediction: Prediction,
    variance: Variance = "fixed_small",
) -> Denoise:
    """A network that is right where x_0 is known: its prediction of x_0 is replaced there at every
    step, as GLIDE's inpainting does (its `denoised_fn`). Any sampler runs it.

    Args:
        denoise: with its conditions and guidance.
        schedule: the *training* chain: the network is asked by training timestep.
    Returns:
        (x_t, training timestep) -> output; a learned variance stays the network's.
    """
    x0 = known.x0.astype(jnp.float32)

    def run(xt: Array, t: Array) -> Array:
        output, values = denoise(xt, t).astype(jnp.float32), None
        if variance == "learned_range":
            output, values = split_variance(output)
        truth = x0
        if prediction != "x0":
            truth = eps_from_x0(schedule, x0, xt, t)
        if prediction == "v":
            truth = v_from_x0_eps(schedule, x0, truth, t)
        output = jnp.where(known.keep, truth, output)
        return output if values is None else jnp.concatenate([output, values], axis=-1)

    return run
