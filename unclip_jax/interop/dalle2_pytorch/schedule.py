"""The family's noise schedules, as its checkpoints store them: thirteen tables of T numbers.

Each table is derived in float64 and cast to float32 by itself, as DALLE2-pytorch's
`NoiseScheduler` does, so that what is computed here is what stands in a file. `jsd` is the
exception: its betas are float32 from the start.

Timesteps are 0-based; t = 0 is the least noisy and carries beta_0 already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import Array

from unclip_jax.errors import UserError

NoiseScheduleName = Literal["cosine", "linear", "quadratic", "jsd", "sigmoid"]
P2_TABLE = "p2_loss_weight"
"""The one table that files written before version 0.7.1 lack."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A chain of T noise levels. Tables are [T] float32, named as a checkpoint's buffers are.

    Hash and equality are identity, so that a schedule can be a static argument of `jax.jit`.
    """

    name: NoiseScheduleName
    betas: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray
    """Of the step before; 1 at t = 0."""
    sqrt_alphas_cumprod: np.ndarray
    sqrt_one_minus_alphas_cumprod: np.ndarray
    log_one_minus_alphas_cumprod: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray
    """Infinite at the last step of jsd, which has no signal; so is the next table."""
    sqrt_recipm1_alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance_clipped: np.ndarray
    """Of at least 1e-20, so log 1e-20 at t = 0."""
    posterior_mean_coef1: np.ndarray
    """Factor of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
    posterior_mean_coef2: np.ndarray
    """Factor of x_t there."""
    p2_loss_weight: np.ndarray
    """(k + snr)^-gamma (Choi et al. 2022); ones where gamma is 0."""

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.betas)

    def buffers(self) -> dict[str, np.ndarray]:
        """The thirteen tables by the names a state dict has for them."""
        return {name: getattr(self, name) for name in TABLES}

    def q_sample(self, x0: Array, t: Array, noise: Array) -> Array:
        """x_t ~ q(x_t | x_0) (Ho et al. 2020, eq. 4).

        Args:
            x0, noise: [B, ...] float32.
            t: [B] int32 in [0, T), here and below.
        """
        signal, sigma = self._levels(t, x0)
        return signal * x0 + sigma * noise

    def q_sample_from_to(self, x: Array, t_from: Array, t_to: Array, noise: Array) -> Array:
        """x_{t_to} from x_{t_from}, noised further (RePaint's step back)."""
        signal, sigma = self._levels(t_from, x)
        next_signal, next_sigma = self._levels(t_to, x)
        fresh = (next_sigma * signal - sigma * next_signal) / signal
        return x * (next_signal / signal) + noise * fresh

    def velocity(self, x0: Array, t: Array, noise: Array) -> Array:
        """v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans & Ho 2022)."""
        signal, sigma = self._levels(t, x0)
        return signal * noise - sigma * x0

    def start_from_velocity(self, xt: Array, t: Array, velocity: Array) -> Array:
        """x_0 from v."""
        signal, sigma = self._levels(t, xt)
        return signal * xt - sigma * velocity

    def start_from_noise(self, xt: Array, t: Array, noise: Array) -> Array:
        """x_0 from eps; not finite at a step without signal (`jsd`'s last)."""
        recip = at(self.sqrt_recip_alphas_cumprod, t, xt)
        return recip * xt - at(self.sqrt_recipm1_alphas_cumprod, t, xt) * noise

    def noise_from_start(self, xt: Array, t: Array, x0: Array) -> Array:
        """eps from x_0, in the form that stays finite where there is no signal."""
        signal, sigma = self._levels(t, xt)
        return (xt - signal * x0) / sigma

    def posterior_mean(self, x0: Array, xt: Array, t: Array) -> Array:
        """Mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        coef1, coef2 = self.posterior_mean_coef1, self.posterior_mean_coef2
        return at(coef1, t, x0) * x0 + at(coef2, t, xt) * xt

    def posterior_log_variance(self, t: Array, x: Array) -> Array:
        """Clipped log variance of q(x_{t-1} | x_t, x_0): [B, 1, ...] with the axes of x."""
        return at(self.posterior_log_variance_clipped, t, x)

    def _levels(self, t: Array, x: Array) -> tuple[Array, Array]:
        signal = at(self.sqrt_alphas_cumprod, t, x)
        return signal, at(self.sqrt_one_minus_alphas_cumprod, t, x)


TABLES = tuple(field.name for field in fields(NoiseSchedule) if field.name != "name")
"""Names of the tables, in a state dict's order."""


def at(table: np.ndarray, t: Array, x: Array) -> Array:
    """Rows `t` of a table, [B, 1, ...] with as many axes as x."""
    return jnp.asarray(table)[t].reshape(-1, *[1] * (x.ndim - 1))


def make_noise_schedule(
    name: NoiseScheduleName, timesteps: int, *, p2_gamma: float = 0.0, p2_k: float = 1.0
) -> NoiseSchedule:
    """A schedule by name.

    cosine: abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), betas at most 0.999. linear, quadratic,
    sigmoid: betas from 1e-4 to 0.02, both times 1000 / T, evenly spaced themselves, as square
    roots, or along a sigmoid from -6 to 6. jsd: 1 / T, 1 / (T - 1), ..., 1.

    Raises:
        UserError: an unknown name, no timestep, or so few that a beta passes 1.
    """
    if timesteps < 1:
        raise UserError(f"timesteps is {timesteps}: a noise schedule needs 1 or more")
    if name not in _BETAS:
        names = ", ".join(get_args(NoiseScheduleName))
        raise UserError(f"noise schedule {name!r} is unknown: choose one of {names}")
    betas = _BETAS[name](timesteps)
    if betas.max() > 1:
        raise UserError(
            f"timesteps is {timesteps}: the {name} schedule needs 20 or more, below that a beta "
            "passes 1"
        )
    one = betas.dtype.type(1)
    alphas = one - betas
    # The running product is float64 even where the factors are float32.
    bar = np.cumprod(alphas, dtype=np.float64).astype(betas.dtype)
    previous = np.append(one, bar[:-1])
    with np.errstate(divide="ignore"):
        variance = betas * (one - previous) / (one - bar)
        tables = {
            "betas": betas,
            "alphas_cumprod": bar,
            "alphas_cumprod_prev": previous,
            "sqrt_alphas_cumprod": np.sqrt(bar),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(one - bar),
            "log_one_minus_alphas_cumprod": np.log(one - bar),
            "sqrt_recip_alphas_cumprod": np.sqrt(one / bar),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(one / bar - one),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(previous) / (one - bar),
            "posterior_mean_coef2": (one - previous) * np.sqrt(alphas) / (one - bar),
            P2_TABLE: (p2_k + bar / (one - bar)) ** -p2_gamma,
        }
    return NoiseSchedule(name, **{key: _frozen(table) for key, table in tables.items()})


def matching_schedule(
    buffers: Mapping[str, np.ndarray], *, p2_k: float = 1.0, what: str = "the checkpoint"
) -> NoiseSchedule:
    """The schedule whose tables these are, name and length found from the betas.

    Args:
        buffers: a checkpoint's, by name and without prefix; float32, or stored narrower.
        p2_k: k of the p2 weight, whose gamma is found from the table.
        what: how a message calls the file.
    Raises:
        UserError: missing tables, or numbers that are no known schedule's.
    """
    missing = [name for name in TABLES if name not in buffers and name != P2_TABLE]
    if missing or buffers["betas"].ndim != 1 or not len(buffers["betas"]):
        lost = missing[0] if missing else "betas"
        raise UserError(f"{what} has no usable table {lost}: its noise schedule cannot be read")
    betas = np.asarray(buffers["betas"])
    for name in get_args(NoiseScheduleName):
        found = _BETAS[name](len(betas))
        if _agree(betas, _frozen(found)):
            break
    else:
        raise UserError(
            f"the betas of {what} ({len(betas)} from {betas[0]:.3g} to {betas[-1]:.3g}) are no "
            f"{', '.join(get_args(NoiseScheduleName))} schedule: nothing was loaded"
        )
    plain = make_noise_schedule(name, len(betas))
    gamma = _p2_gamma(plain, np.asarray(buffers.get(P2_TABLE, plain.p2_loss_weight)), p2_k)
    schedule = make_noise_schedule(name, len(betas), p2_gamma=gamma, p2_k=p2_k)
    for table in TABLES:
        if table in buffers and not _agree(np.asarray(buffers[table]), getattr(schedule, table)):
            raise UserError(
                f"the table {table} of {what} is not that of its {name} schedule with "
                f"{len(betas)} timesteps: the file is damaged, restore it"
            )
    # Another machine's cosine may differ in the last bit: float32 tables go back as they came.
    own = {n: _frozen(np.asarray(a)) for n, a in buffers.items() if a.dtype == np.float32}
    return replace(schedule, **{table: own[table] for table in TABLES if table in own})


def _cosine(timesteps: int) -> np.ndarray:
    u = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    level = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    level = level / level[0]
    return np.clip(1 - level[1:] / level[:-1], 0, 0.999)


def _ends(timesteps: int) -> tuple[float, float]:
    return 1000 / timesteps * 1e-4, 1000 / timesteps * 0.02


def _linear(timesteps: int) -> np.ndarray:
    return np.linspace(*_ends(timesteps), timesteps)


def _quadratic(timesteps: int) -> np.ndarray:
    first, last = _ends(timesteps)
    return np.linspace(first**0.5, last**0.5, timesteps) ** 2


def _sigmoid(timesteps: int) -> np.ndarray:
    first, last = _ends(timesteps)
    return (last - first) / (1 + np.exp(-np.linspace(-6, 6, timesteps))) + first


def _jsd(timesteps: int) -> np.ndarray:
    return np.float32(1) / np.arange(timesteps, 0, -1, dtype=np.float32)


_BETAS: dict[str, Callable[[int], np.ndarray]] = {
    "cosine": _cosine,
    "linear": _linear,
    "quadratic": _quadratic,
    "jsd": _jsd,
    "sigmoid": _sigmoid,
}


def _frozen(table: np.ndarray) -> np.ndarray:
    table = table.astype(np.float32)
    table.setflags(write=False)
    return table


def _p2_gamma(plain: NoiseSchedule, weights: np.ndarray, k: float) -> float:
    """Gamma from the entry that determines it best."""
    # 1 - abar is taken from its logarithm: from abar in float32 it would have three digits.
    noise = np.exp(plain.log_one_minus_alphas_cumprod.astype(np.float64))
    base = np.log(k + plain.alphas_cumprod / noise)
    best = int(np.argmax(np.abs(base)))
    weight = float(weights.reshape(-1)[best]) if weights.size == len(base) else 0.0
    # Six digits: what a config says, without the rounding of the table.
    return round(-float(np.log(weight) / base[best]), 6) + 0.0 if weight > 0 else 0.0


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal as far as the stored dtype goes; a table in half precision has lost small numbers."""
    if found.shape != expected.shape:
        return False
    info = ml_dtypes.finfo(found.dtype) if found.dtype.kind in "fV" else None
    rtol = max(2e-6, 2 * float(info.eps)) if info else 0.0
    atol = max(1e-12, float(info.smallest_normal)) if info else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = expected.astype(found.dtype).astype(np.float64)
        return bool(np.allclose(found.astype(np.float64), rounded, rtol=rtol, atol=atol))
