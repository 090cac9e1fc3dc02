"""Noise schedules in float64, and the shorter chains that sampling uses (`spacing` chooses them).

The tables stay in numpy and in double precision: with cosine betas, abar falls to 2.4e-9, and the
posterior's coefficients computed from float32 tables are wrong by 27 % in the first of 7 steps.
`process.extract` casts them once, after everything has been derived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from unclip_jax.errors import UserError

ScheduleName = Literal["cosine", "linear"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of a chain of N steps: the training chain, or a subset of it.

    Hash and equality are identity, so that a schedule can be a static argument of `jax.jit`.

    betas, alphas_bar, alphas_bar_prev: [N] float64, or float32 from `float32_tables`;
        beta_i = 1 - abar_i / abar_{i-1} of *this* chain, and alphas_bar_prev[0] = 1.
    timesteps: [N] int32, increasing: the index each step has in the training chain. Networks are
        always given timesteps[i], never i.
    num_train_timesteps: length T of the training chain.
    """

    betas: np.ndarray
    alphas_bar: np.ndarray
    alphas_bar_prev: np.ndarray
    timesteps: np.ndarray
    num_train_timesteps: int

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def posterior_variance(self) -> np.ndarray:
        """Variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7), [N]; 0 at t = 0."""
        return self.betas * (1 - self.alphas_bar_prev) / (1 - self.alphas_bar)

    @cached_property
    def posterior_log_variance_clipped(self) -> np.ndarray:
        """Log of the posterior variance, [N]; for log 0 at t = 0 stands its t = 1, as in ADM."""
        return self._log_with_first(self.posterior_variance)

    @cached_property
    def large_log_variance(self) -> np.ndarray:
        """Log beta, the reverse variance's upper bound, [N]; t = 0 has the posterior's t = 1."""
        return self._log_with_first(self.betas)

    def _log_with_first(self, variance: np.ndarray) -> np.ndarray:
        # No noise is drawn at t = 0; the entry is only the scale of the decoder's likelihood there.
        # A chain of one step has no t = 1: its beta is the one finite scale it knows.
        first = self.posterior_variance[1] if len(self) > 1 else self.betas[0]
        return np.log(np.append(first, variance[1:]))

    @cached_property
    def posterior_mean_coef1(self) -> np.ndarray:
        """Factor of x_0 in the posterior mean, sqrt(abar_{t-1}) beta_t / (1 - abar_t), [N]."""
        return np.sqrt(self.alphas_bar_prev) * self.betas / (1 - self.alphas_bar)

    @cached_property
    def posterior_mean_coef2(self) -> np.ndarray:
        """Factor of x_t in the posterior mean, [N]: sqrt(1-beta_t) (1-abar_{t-1}) / (1-abar_t)."""
        return np.sqrt(1 - self.betas) * (1 - self.alphas_bar_prev) / (1 - self.alphas_bar)

    @cached_property
    def sqrt_alphas_bar(self) -> np.ndarray:
        """Signal's share of x_t, [N]."""
        return np.sqrt(self.alphas_bar)

    @cached_property
    def sqrt_one_minus_alphas_bar(self) -> np.ndarray:
        """Noise's share of x_t, [N]."""
        return np.sqrt(1 - self.alphas_bar)

    @cached_property
    def log_snr(self) -> np.ndarray:
        """lambda = log(sqrt(abar) / sqrt(1 - abar)), half the log of the signal-to-noise ratio.

        [N], falling; -inf where abar is 0.
        """
        with np.errstate(divide="ignore"):
            return 0.5 * (np.log(self.alphas_bar) - np.log1p(-self.alphas_bar))

    @cached_property
    def sqrt_recip_alphas_bar(self) -> np.ndarray:
        """1 / sqrt(abar), [N]."""
        return 1 / np.sqrt(self.alphas_bar)

    @cached_property
    def sqrt_recipm1_alphas_bar(self) -> np.ndarray:
        """sqrt(1 / abar - 1), [N]."""
        # 1 / abar in float32 would cost what little noise is left at t = 0 a thousandth.
        return np.sqrt(1 - self.alphas_bar) / np.sqrt(self.alphas_bar)


def make_schedule(name: ScheduleName, num_timesteps: int = 1000) -> Schedule:
    """The training chain.

    cosine (Nichol & Dhariwal 2021, eq. 17): abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2) at
    u = t / T, betas at most 0.999, and abar is the product of the *capped* betas.
    linear (Ho et al. 2020): betas from 1e-4 to 0.02, times 1000 / T.

    Raises:
        UserError: an unknown name, fewer than one timestep, or so few that a linear beta reaches 1.
    """
    if num_timesteps < 1:
        raise UserError(f"num_timesteps is {num_timesteps}: a schedule needs 1 or more")
    if name == "cosine":
        steps = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
        level = np.cos((steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - level[1:] / level[:-1], 0.999)
    elif name == "linear":
        scale = 1000 / num_timesteps
        betas = np.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=np.float64)
        if betas[-1] >= 1:
            raise UserError(
                f"num_timesteps is {num_timesteps}: a linear schedule needs 21 or more, "
                "below that a beta reaches 1"
            )
    else:
        raise UserError(f"schedule {name!r} is unknown: choose cosine or linear")
    alphas_bar = np.cumprod(1 - betas)
    return _schedule(betas, alphas_bar, np.arange(num_timesteps), num_timesteps)


def respace(schedule: Schedule, timesteps: Sequence[int] | np.ndarray) -> Schedule:
    """The chain that visits only some steps of `schedule` (Nichol & Dhariwal 2021, section 4).

    The noise levels abar of the kept steps stay; the betas follow from them.

    Args:
        timesteps: increasing indices into `schedule`, as `spaced_timesteps` returns them.
    Raises:
        UserError: no timestep, one outside the chain, or an order that is not increasing.
    """
    kept = np.asarray(timesteps, dtype=np.int64)
    if kept.ndim != 1 or not len(kept) or np.any(np.diff(kept) <= 0):
        raise UserError(f"timesteps {list(timesteps)}: give one or more, in increasing order")
    if kept[0] < 0 or kept[-1] >= len(schedule):
        raise UserError(
            f"timesteps reach from {kept[0]} to {kept[-1]}: give indices from 0 to "
            f"{len(schedule) - 1}, the schedule's last"
        )
    alphas_bar = schedule.alphas_bar[kept]
    betas = 1 - alphas_bar / _shifted(alphas_bar)
    if alphas_bar.dtype == np.float32:
        # diffusers looks the beta up where no step was left out; computed again it differs.
        betas = np.where(np.diff(kept, prepend=-1) == 1, schedule.betas[kept], betas)
    return _schedule(betas, alphas_bar, schedule.timesteps[kept], schedule.num_train_timesteps)


def float32_tables(schedule: Schedule) -> Schedule:
    """The training chain as diffusers' UnCLIPScheduler has it, with all its tables in float32.

    It reproduces what diffusers computes, rounding included: the last step multiplies x_0 by 0.9995
    instead of 1, the first of 7 steps of a cosine chain takes 27 % too much of x_t.

    Args:
        schedule: of all timesteps, not respaced.
    """
    betas = schedule.betas.astype(np.float32)
    # torch adds up products of float32 in float64 and rounds each of them.
    alphas_bar = np.cumprod((1 - betas).astype(np.float64)).astype(np.float32)
    return _schedule(betas, alphas_bar, schedule.timesteps, schedule.num_train_timesteps)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The chain, rescaled so that its last step is pure noise (Lin et al. 2023, algorithm 1).

    sqrt(abar) is shifted by its last value and stretched so that the first one stays. Without a
    signal left, x_0 does not follow from eps: networks have to predict x0 or v.

    Args:
        schedule: of two steps or more.
    Raises:
        UserError: a chain of one step, which would have to keep its level and lose it.
    """
    if len(schedule) < 2:
        raise UserError("zero terminal SNR needs a chain of 2 steps or more: give more timesteps")
    signal = schedule.sqrt_alphas_bar
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    alphas_bar = signal**2
    betas = 1 - alphas_bar / np.append(1.0, alphas_bar[:-1])
    return _schedule(betas, alphas_bar, schedule.timesteps, schedule.num_train_timesteps)


def _schedule(
    betas: np.ndarray, alphas_bar: np.ndarray, timesteps: np.ndarray, num_train_timesteps: int
) -> Schedule:
    tables = (betas, alphas_bar, _shifted(alphas_bar), timesteps.astype(np.int32))
    for table in tables:
        table.setflags(write=False)
    return Schedule(*tables, num_train_timesteps=num_train_timesteps)


def _shifted(alphas_bar: np.ndarray) -> np.ndarray:
    """abar of the step before each: 1 at the start."""
    return np.append(alphas_bar.dtype.type(1), alphas_bar[:-1])
