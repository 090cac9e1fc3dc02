"""What every stage's recipe has, and the diffusion process of those that have one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unclip_jax.config import (
    CheckpointConfig,
    DataConfig,
    GuardConfig,
    LogConfig,
    MeshConfig,
    OptimConfig,
)
from unclip_jax.diffusion.process import Prediction, Variance
from unclip_jax.diffusion.schedule import (
    Schedule,
    float32_tables,
    make_schedule,
    zero_terminal_snr,
)
from unclip_jax.diffusion.weighting import LossWeighting
from unclip_jax.errors import UserError
from unclip_jax.models.limits import check_sizes


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process a network was trained for, and what its output means."""

    schedule: Literal["cosine", "linear"] = "cosine"
    num_timesteps: int = 1000
    prediction: Prediction = "eps"
    variance: Variance = "fixed_small"
    weighting: LossWeighting = LossWeighting()
    """How much each noise level counts in the loss; the paper weights the error of eps evenly."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that its last step is pure noise, in training and in sampling (Lin et
    al. 2023); needs prediction x0 or v."""
    tables: Literal["float64", "float32"] = "float64"
    """Precision in which the chain's coefficients are computed; float32 repeats diffusers' errors,
    to compare with it."""

    def __post_init__(self) -> None:
        if self.num_timesteps < 2:
            raise UserError(f"diffusion.num_timesteps is {self.num_timesteps}: give 2 or more")
        check_sizes(self)
        if self.zero_terminal_snr and self.prediction == "eps":
            raise UserError(
                "diffusion.zero_terminal_snr needs diffusion.prediction x0 or v: from eps no "
                "picture follows where no signal is left"
            )
        if self.zero_terminal_snr and self.tables == "float32":
            raise UserError("diffusion.tables float32 has no zero_terminal_snr: choose float64")


def training_chain(diffusion: DiffusionConfig) -> Schedule:
    """All timesteps of the forward process: what training draws from and sampling takes steps of.

    Raises:
        UserError: too few timesteps for a linear schedule.
    """
    chain = make_schedule(diffusion.schedule, diffusion.num_timesteps)
    if diffusion.tables == "float32":
        return float32_tables(chain)
    return zero_terminal_snr(chain) if diffusion.zero_terminal_snr else chain


@dataclass(frozen=True)
class Run:
    """What every stage's recipe has."""

    steps: int = 1000
    """Optimiser steps of the whole run."""
    batch_size: int = 64
    """Pictures a step, over all devices and micro-batches."""
    seed: int = 0
    init_from: str | None = None
    """Weights that a new run starts from: a run, an exported folder, or a shipped model. What they
    lack starts as it does without; input channels that they lack start at zero."""
    ema_decay: float = 0.9999
    """Of the averaged weights that sampling uses; young averages forget faster, see `state.py`."""
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    mesh: MeshConfig = MeshConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError(
                f"steps is {self.steps} and batch_size {self.batch_size}: give 1 or more of each"
            )
        if self.batch_size % self.optim.accumulate:
            raise UserError(
                f"batch_size {self.batch_size} is not divisible by optim.accumulate "
                f"{self.optim.accumulate}"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}: give 0 up to, not including, 1")


def check_share(name: str, value: float) -> None:
    """UserError unless `value` of the field `name` is between 0 and 1."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} is {value}: give a share between 0 and 1")
