"""How one stage is sampled, and the chain of timesteps that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unclip_jax.diffusion.guidance import Thresholding
from unclip_jax.diffusion.schedule import Schedule, respace
from unclip_jax.diffusion.spacing import log_snr_timesteps, spaced_timesteps
from unclip_jax.errors import UserError

Method = Literal["ddpm", "ddim", "dpm_solver", "unipc"]
_METHODS = ("ddpm", "ddim", "dpm_solver", "unipc")


@dataclass(frozen=True)
class SamplerConfig:
    """How one stage is sampled."""

    method: Method = "ddpm"
    """ddpm draws noise at every step; ddim with eta 0 none; dpm_solver (DPM-Solver++(2M)) and unipc
    none, and need fewer steps."""
    num_steps: int | str | tuple[int, ...] = 250
    """Steps, or where they lie: 'ddim50', 'fast27', steps a section such as '10,10,3,2,2', or the
    timesteps of the training chain themselves."""
    spacing: Literal["respaced", "log_snr"] = "respaced"
    """Where a plain number of steps lies: evenly spaced timesteps, or, for dpm_solver and unipc,
    even distances of the log signal-to-noise ratio."""
    eta: float = 0.0
    """ddim only: 0 is deterministic, 1 draws as much noise as ddpm with the small variance."""
    variance: Literal["trained", "analytic"] = "trained"
    """ddpm of the prior only: the variance that the network was trained with, or the best one that
    was measured on held-out data (Bao et al. 2022; `unclip fit-variance`)."""
    start_scale: float = 1.0
    """Factor on the noise that is drawn as x_T; GLIDE's upsampler has 0.997."""
    thresholding: Thresholding = "static"
    """What is done to the predicted clean sample: none, static (clip) or dynamic."""
    limit: float = 1.0
    """Largest magnitude of clean data: 1 for pictures."""
    percentile: float = 0.995
    """dynamic only: the fraction of values that are not clipped."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is the plain conditional model."""
    guidance_rescale: float = 0.0
    """How far guided outputs get the standard deviation of unguided ones back (Lin et al. 2023)."""
    guidance_interval: tuple[int, int] | None = None
    """First and last timestep of the training chain that are guided (Kynkaanniemi et al. 2024);
    None guides all."""
    iterations: int = 0
    """Inversion only: fixed-point iterations a step, each a call of the network. 0 is the reversed
    Euler step, one call and not exact; 3 reconstruct Gaussian data to 1e-4 over 50 steps."""

    def __post_init__(self) -> None:
        if isinstance(self.num_steps, list):  # JSON knows no tuples
            object.__setattr__(self, "num_steps", tuple(self.num_steps))
        if isinstance(self.guidance_interval, list):
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        if self.method not in _METHODS:
            raise UserError(f"method {self.method!r} is unknown: choose {', '.join(_METHODS)}")
        if self.thresholding not in ("none", "static", "dynamic"):
            raise UserError(
                f"thresholding {self.thresholding!r} is unknown: choose none, static or dynamic"
            )
        self._check_steps()
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta is {self.eta}: give 0 to 1")
        if self.eta and self.method != "ddim":
            raise UserError(f"eta is {self.eta}, but only ddim reads it: {self.method} needs eta 0")
        if self.variance not in ("trained", "analytic"):
            raise UserError(f"variance {self.variance!r} is unknown: choose trained or analytic")
        if self.variance == "analytic" and self.method != "ddpm":
            raise UserError(
                f"variance is 'analytic', but only ddpm reads it: {self.method} needs 'trained'"
            )
        if self.start_scale <= 0:
            raise UserError(f"start_scale is {self.start_scale}: give a positive number")
        if self.limit <= 0:
            raise UserError(f"limit is {self.limit}: give a positive number")
        if not 0 < self.percentile <= 1:
            raise UserError(f"percentile is {self.percentile}: give a fraction up to 1")
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"guidance_rescale is {self.guidance_rescale}: give 0 to 1")
        if self.guidance_interval is not None:
            ends = self.guidance_interval
            if len(ends) != 2 or not 0 <= ends[0] <= ends[1]:
                raise UserError(
                    f"guidance_interval is {ends}: give two timesteps, the smaller one first"
                )
        if self.iterations < 0:
            raise UserError(f"iterations is {self.iterations}: give 0 or more")

    def _check_steps(self) -> None:
        if isinstance(self.num_steps, int) and self.num_steps < 1:
            raise UserError(f"num_steps is {self.num_steps}: give 1 or more")
        if isinstance(self.num_steps, tuple) and (
            not self.num_steps or any(type(step) is not int for step in self.num_steps)
        ):
            raise UserError(f"num_steps is {self.num_steps}: give timesteps, each a whole number")
        if self.spacing not in ("respaced", "log_snr"):
            raise UserError(f"spacing {self.spacing!r} is unknown: choose respaced or log_snr")
        if self.spacing == "log_snr" and not isinstance(self.num_steps, int):
            raise UserError(
                f"spacing log_snr needs a plain number of steps, num_steps is {self.num_steps!r}: "
                "give a number, or spacing respaced"
            )


def sampling_schedule(schedule: Schedule, config: SamplerConfig) -> Schedule:
    """The part of the training chain that `config` visits; raises UserError."""
    if config.spacing == "log_snr" and isinstance(config.num_steps, int):
        return respace(schedule, log_snr_timesteps(schedule, config.num_steps))
    return respace(schedule, spaced_timesteps(len(schedule), config.num_steps))
