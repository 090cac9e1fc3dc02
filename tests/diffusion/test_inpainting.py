"""RePaint and GLIDE's replacement on correlated Gaussian data, whose conditionals are known.

With the optimal denoiser E[x_0 | x_t] = mu + c S (c^2 S + n^2)^-1 (x_t - c mu) every move is affine
in the state and in its noise, so that the mean and covariance of what comes out follow exactly:
`expected` pushes them through the moves, in float64 and with Bayes' rule instead of the package's
tables, and `moments` finds them from the scan by feeding unit vectors of noise.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from tests.diffusion.gaussian import Gaussian, rounding
from unclip_jax.diffusion.inpainting import Known, Resampling, known_output, make_walk, repaint
from unclip_jax.diffusion.process import (
    Prediction,
    eps_from_x0,
    q_sample,
    v_from_x0_eps,
)
from unclip_jax.diffusion.samplers import Denoise, SamplerConfig, sample, sampling_schedule
from unclip_jax.diffusion.schedule import Schedule, make_schedule
from unclip_jax.errors import UserError

TRAINING = make_schedule("cosine")
KEEP = np.array([True, False])


@dataclass(frozen=True)
class Pair:
    """Two numbers that know of each other; the first is known."""

    mean: tuple[float, float] = (0.3, -0.2)
    covariance: tuple[tuple[float, float], ...] = ((0.5, 0.36), (0.36, 0.4))
    value: float = 1.2

    @property
    def conditional(self) -> tuple[float, float]:
        """Mean and variance of the second, given the first."""
        (a, b), (_, d) = self.covariance
        return self.mean[1] + b / a * (self.value - self.mean[0]), d - b * b / a

    def gain(self, level: float) -> np.ndarray:
        """dE[x_0 | x_t] / dx_t, [2, 2]."""
        s = np.asarray(self.covariance)
        return np.sqrt(level) * s @ np.linalg.inv(level * s + (1 - level) * np.eye(2))

    def denoiser(self, prediction: Prediction) -> Denoise:
        gains = jnp.asarray(np.stack([self.gain(level) for level in TRAINING.alphas_bar]), "f4")
        mean = jnp.asarray(self.mean, jnp.float32)

        def denoise(xt: Array, t: Array) -> Array:
            centred = xt - jnp.asarray(TRAINING.sqrt_alphas_bar, "f4")[t][:, None] * mean
            x0 = mean + jnp.einsum("bij,bj->bi", gains[t], centred)
            if prediction == "x0":
                return x0
            eps = eps_from_x0(TRAINING, x0, xt, t)
            return eps if prediction == "eps" else v_from_x0_eps(TRAINING, x0, eps, t)

        return denoise


DATA = Pair()


def expected(
    data: Pair, chain: Schedule, config: SamplerConfig, resampling: Resampling
) -> tuple[float, float]:
    """Mean and variance of the second number, from the moves one by one."""
    level, previous = chain.alphas_bar, np.append(1.0, chain.alphas_bar[:-1])
    beta, mu = 1 - level / previous, np.asarray(data.mean)
    known = np.array([data.value, 0.0])
    unit, free = np.eye(2), np.diag((~KEEP).astype(float))
    mean = KEEP * np.sqrt(level[-1]) * known
    cov = np.diag(np.where(KEEP, 1 - level[-1], 1.0))
    walk = make_walk(len(chain), resampling)
    for i, is_back in zip(walk.index, walk.is_back, strict=True):
        if is_back:
            a, b, noise = np.sqrt(1 - beta[i]) * unit, np.zeros(2), np.sqrt(beta[i]) * unit
        else:
            gain = data.gain(float(level[i]))
            if config.method == "ddim":
                sigma = config.eta * np.sqrt((1 - previous[i]) / (1 - level[i]) * beta[i])
                keep = np.sqrt(max(1 - previous[i] - sigma**2, 0) / (1 - level[i]))
            else:
                sigma = np.sqrt(beta[i] * (1 - previous[i]) / (1 - level[i]))
                keep = np.sqrt(1 - beta[i]) * (1 - previous[i]) / (1 - level[i])
            share = np.sqrt(previous[i]) - keep * np.sqrt(level[i])
            a = free @ (share * gain + keep * unit)
            b = free @ (share * (mu - gain @ (np.sqrt(level[i]) * mu)))
            b = b + KEEP * np.sqrt(previous[i]) * known
            noise = np.diag(np.where(KEEP, np.sqrt(1 - previous[i]), sigma))
        mean, cov = a @ mean + b, a @ cov @ a.T + noise @ noise.T
    return float(mean[1]), float(cov[1, 1])


def moments(
    data: Pair, config: SamplerConfig, resampling: Resampling, prediction: Prediction
) -> tuple[float, float]:
    """The same from the scan: row 0 without noise, every other with one unit of it somewhere."""
    chain = sampling_schedule(TRAINING, config)
    moves = len(make_walk(len(chain), resampling).index)
    rows = 2 * moves + 3
    noise = np.zeros((moves, rows, 2), np.float32)
    unit = np.arange(2 * moves)
    noise[unit // 2, unit + 1, unit % 2] = 1
    x_T = np.zeros((rows, 2), np.float32)
    x_T[[-2, -1], [0, 1]] = 1
    known = Known(jnp.full((rows, 2), data.value), jnp.asarray(KEEP))

    @jax.jit
    def run(x_T: Array, noise: Array) -> Array:
        denoise = data.denoiser(prediction)
        how = {"config": config, "resampling": resampling, "prediction": prediction}
        return repaint(denoise, chain, known, x_T=x_T, noise=noise, **how)

    found = np.asarray(run(jnp.asarray(x_T), jnp.asarray(noise)), np.float64)
    assert np.all(found[:, 0] == np.float32(data.value))
    return float(found[0, 1]), float(np.sum((found[1:, 1] - found[0, 1]) ** 2))


def paper_levels(steps: int, jump_length: int, resamples: int) -> list[int]:
    """`get_schedule_jump` of the authors' code; its index t is our level t + 1."""
    jumps = dict.fromkeys(range(0, steps - jump_length, jump_length), resamples - 1)
    t, found = steps, []
    while t >= 1:
        t -= 1
        found.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                found.append(t)
    return [level + 1 for level in [*found, -1]]


@pytest.mark.parametrize(
    ("steps", "length", "times"), [(250, 10, 10), (30, 5, 5), (7, 3, 2), (4, 9, 3), (1, 1, 4)]
)
def test_the_walk_is_the_papers(steps: int, length: int, times: int) -> None:
    walk = make_walk(steps, Resampling(length, times))
    levels = [steps, *np.where(walk.is_back, walk.index + 1, walk.index).tolist()]
    assert levels == paper_levels(steps, length, times)
    visits = list(zip(walk.index.tolist(), walk.visit.tolist(), strict=True))
    assert len(set(visits)) == len(visits)  # every visit has a noise of its own


@pytest.mark.parametrize("prediction", ["x0", "v", "eps"])
@pytest.mark.parametrize(("method", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5)])
def test_moments(method: str, eta: float, prediction: Prediction) -> None:
    config = SamplerConfig(method=method, num_steps=20, eta=eta, thresholding="none")  # type: ignore[arg-type]
    chain, resampling = sampling_schedule(TRAINING, config), Resampling(3, 4)
    mean, variance = moments(DATA, config, resampling, prediction)
    wanted = expected(DATA, chain, config, resampling)
    # Moves instead of steps add up their roundings.
    relative = rounding(chain, prediction) * len(make_walk(20, resampling).index) / 20
    assert mean == pytest.approx(wanted[0], abs=relative * DATA.value)
    assert variance == pytest.approx(wanted[1], rel=2 * relative)


@pytest.mark.parametrize(("method", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_resampling_leads_to_the_conditional(method: str, eta: float) -> None:
    """One pass gets half of the way or less from the mean to the conditional mean; each doubling
    of the resamples comes nearer, and 64 are there but for 1 %. The spread shrinks to less than the
    conditional's, for what is known is drawn anew at every step: 0.77 and 0.87 of its variance."""
    config = SamplerConfig(method=method, num_steps=250, eta=eta, thresholding="none")  # type: ignore[arg-type]
    chain = sampling_schedule(TRAINING, config)
    target, spread = DATA.conditional
    start = DATA.mean[1]
    found = [expected(DATA, chain, config, Resampling(5, 2**k)) for k in range(7)]
    way = [(mean - start) / (target - start) for mean, _ in found]
    assert way[0] < 0.7 and way[-1] > 0.98
    assert all(a < b < 1 for a, b in itertools.pairwise(way))
    assert found[0][1] > 1.25 * spread and 0.75 < found[-1][1] / spread < 1


def test_moments_of_keyed_noise() -> None:
    """With noise from keys the same moments, which visits that shared theirs would not have."""
    config = SamplerConfig(num_steps=20, thresholding="none")
    chain, resampling = sampling_schedule(TRAINING, config), Resampling(3, 4)
    keys = jax.random.split(jax.random.key(0), 4096)
    known = Known(jnp.full((4096, 2), DATA.value), jnp.asarray(KEEP))

    @jax.jit
    def run(keys: Array) -> Array:
        denoise = DATA.denoiser("x0")
        how = {"config": config, "resampling": resampling, "prediction": "x0"}
        return repaint(denoise, chain, known, keys=keys, **how)

    found = np.asarray(run(keys), np.float64)[:, 1]
    mean, variance = expected(DATA, chain, config, resampling)
    assert abs(found.mean() - mean) < 4 * np.sqrt(variance / len(found))
    assert abs(found.var() / variance - 1) < 4 * np.sqrt(2 / len(found))


def test_with_nothing_known_it_is_the_sampler() -> None:
    config = SamplerConfig(num_steps=10, start_scale=0.9)
    chain, keys = sampling_schedule(TRAINING, config), jax.random.split(jax.random.key(1), 3)
    denoise = DATA.denoiser("v")
    known = Known(jnp.full((3, 2), jnp.nan), jnp.zeros(2, bool))
    drawn = repaint(
        denoise, chain, known, config=config, resampling=Resampling(1, 1), prediction="v", keys=keys
    )
    plain = sample(denoise, chain, (3, 2), config=config, prediction="v", keys=keys)
    np.testing.assert_allclose(drawn, plain, rtol=0, atol=1e-6)  # another program rounds anew


@pytest.mark.parametrize("prediction", ["x0", "v", "eps"])
@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpm_solver", "unipc"])
def test_a_network_that_sees_what_is_known(method: str, prediction: Prediction) -> None:
    """GLIDE's way: what the network says of the known part is not read, that part is the picture,
    and the rest is distributed as if it were sampled alone."""
    config = SamplerConfig(method=method, num_steps=20, thresholding="none")  # type: ignore[arg-type]
    chain = sampling_schedule(TRAINING, config)
    mean, variance = DATA.conditional
    alone = Gaussian(mean, float(np.sqrt(variance)))
    rows = 6
    known = Known(jnp.full((rows, 2), DATA.value), jnp.asarray(KEEP))
    network = alone.denoiser(TRAINING, prediction)
    seen = []

    def denoise(xt: Array, t: Array) -> Array:
        seen.append((xt[:, 0], t))
        return network(xt, t).at[:, 0].set(7.0)

    keys = jax.random.split(jax.random.key(2), rows)
    draws = [np.asarray(jax.random.normal(key, (21, 2)), np.float32) for key in keys]
    noise = jnp.asarray(np.stack(draws, axis=1))
    how = {"config": config, "prediction": prediction, "x_T": noise[20], "noise": noise[:20]}
    with jax.disable_jit():
        told = known_output(denoise, TRAINING, known, prediction=prediction)
        found = np.asarray(sample(told, chain, (rows, 2), **how))
    plain = np.asarray(sample(network, chain, (rows, 2), **how))
    bound = 20 * rounding(chain, prediction)
    np.testing.assert_allclose(found[:, 0], DATA.value, rtol=bound)
    np.testing.assert_allclose(found[:, 1], plain[:, 1], rtol=0, atol=1e-6)
    if method == "ddim":  # at every level c x_0 + n eps, with the eps that it began with
        for xt, t in seen:
            noisy = q_sample(TRAINING, known.x0[:, 0], t, noise[20][:, 0])
            np.testing.assert_allclose(xt, noisy, rtol=0, atol=bound + 2e-4)


def test_a_learned_variance_is_the_networks() -> None:
    values = np.array([[0.3, -0.4]], np.float32)
    known = Known(jnp.full((1, 2), DATA.value), jnp.asarray(KEEP))

    def denoise(xt: Array, t: Array) -> Array:
        return jnp.concatenate([xt, values], axis=-1)

    told = known_output(denoise, TRAINING, known, prediction="x0", variance="learned_range")(
        jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32)
    )
    np.testing.assert_array_equal(told, [[np.float32(DATA.value), 0.0, *values[0]]])


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="jump_length is 0"):
        Resampling(0, 3)
    with pytest.raises(UserError, match="resamples is -1"):
        Resampling(3, -1)
    config = SamplerConfig(num_steps=4)
    chain = sampling_schedule(TRAINING, config)
    known = Known(jnp.zeros((1, 2)), jnp.asarray(KEEP))
    how = {"config": config, "resampling": Resampling(1, 1), "prediction": "x0"}
    denoise = DATA.denoiser("x0")
    with pytest.raises(UserError, match="give keys"):
        repaint(denoise, chain, known, **how)
    with pytest.raises(UserError, match="noise has shape"):
        repaint(denoise, chain, known, x_T=known.x0, noise=jnp.zeros((3, 1, 2)), **how)
    solver = SamplerConfig(method="unipc", num_steps=4)
    with pytest.raises(UserError, match="unipc"):
        repaint(
            denoise,
            chain,
            known,
            keys=None,
            x_T=known.x0,
            noise=jnp.zeros((4, 1, 2)),
            config=solver,
            resampling=Resampling(1, 1),
            prediction="x0",
        )
