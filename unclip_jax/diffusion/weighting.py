"""How much each noise level counts in the loss.

With SNR = abar / (1 - abar), the squared errors of the three predictions are the same error in
different units: that of eps is SNR times that of x_0, that of v is SNR + 1 times it. A weighting is
one curve over noise levels, and each prediction needs its own factor to follow that curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.errors import UserError


@dataclass(frozen=True)
class LossWeighting:
    """A weighting of the squared error by noise level."""

    name: Literal["none", "min_snr", "p2"] = "none"
    """none: the plain error of whatever is predicted. min_snr: no level counts more than the cap
    (Hang et al. 2023). p2: less where only details are left to see (Choi et al. 2022)."""
    snr_cap: float = 5.0
    """min_snr only: gamma, the largest weight of the error of x_0."""
    p2_gamma: float = 1.0
    """p2 only: strength; 0 is the plain error of eps."""
    p2_k: float = 1.0
    """p2 only: keeps the weight of noisy levels finite."""

    def __post_init__(self) -> None:
        if self.name not in ("none", "min_snr", "p2"):
            raise UserError(f"weighting {self.name!r} is unknown: choose none, min_snr or p2")
        if self.snr_cap <= 0:
            raise UserError(f"weighting.snr_cap is {self.snr_cap}: give a positive number")
        if self.p2_gamma < 0:
            raise UserError(f"weighting.p2_gamma is {self.p2_gamma}: give 0 or more")
        if self.p2_k <= 0:
            raise UserError(f"weighting.p2_k is {self.p2_k}: give a positive number")


def loss_weight(schedule: Schedule, prediction: Prediction, weighting: LossWeighting) -> np.ndarray:
    """The factor of the squared error of `prediction` at every step, [N] float64.

    min_snr (Hang et al. 2023): min(SNR, cap) for x_0, that / SNR for eps and
    / (SNR + 1) for v. p2 (Choi et al. 2022): 1 / (k + SNR)^gamma for eps, times SNR for x_0
    and SNR / (SNR + 1) for v. Where no signal is left, x_0 and v weigh nothing under either.
    """
    if weighting.name == "none":
        return np.ones(len(schedule))
    snr = schedule.alphas_bar / (1 - schedule.alphas_bar)
    if weighting.name == "min_snr":
        # 1 where the SNR is below the cap, also where it is 0.
        of_eps = weighting.snr_cap / np.maximum(snr, weighting.snr_cap)
    else:
        of_eps = (weighting.p2_k + snr) ** -weighting.p2_gamma
    if prediction == "eps":
        return of_eps
    return of_eps * (snr if prediction == "x0" else schedule.alphas_bar)
