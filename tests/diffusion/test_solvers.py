"""DPM-Solver++(2M) and UniPC against their papers' pseudo-code in float64, and their order."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from tests.diffusion.gaussian import Gaussian, exact_flow, moments, rounding
from unclip_jax.diffusion.process import Prediction
from unclip_jax.diffusion.samplers import SamplerConfig, sampling_schedule
from unclip_jax.diffusion.schedule import Schedule, make_schedule, zero_terminal_snr
from unclip_jax.diffusion.solvers import corrector_table, orders, predictor_table

COSINE, LINEAR = make_schedule("cosine"), make_schedule("linear")
NARROW, UNIT, WIDE = Gaussian(0.7, 0.5), Gaussian(-0.3, 1.0), Gaussian(2.0, 3.0)
CHAINS = {
    "even timesteps": (COSINE, {"num_steps": 20}),
    "short": (LINEAR, {"num_steps": 9, "spacing": "log_snr"}),
    "even log-SNR": (COSINE, {"num_steps": 30, "spacing": "log_snr"}),
}


def chain_of(name: str, method: str) -> tuple[Schedule, Schedule, SamplerConfig]:
    training, options = CHAINS[name]
    config = SamplerConfig(method=method, thresholding="none", **options)  # type: ignore[arg-type]
    return training, sampling_schedule(training, config), config


def published(
    chain: Schedule, clean: Callable[[float, int], float], x: float, method: str
) -> float:
    """The papers' loops, one number at a time. The orders of the steps are the package's own."""
    alpha, sigma = np.sqrt(chain.alphas_bar), np.sqrt(1 - chain.alphas_bar)
    lam = np.log(alpha) - np.log(sigma)
    order = orders(chain)
    last = len(chain) - 1
    found: dict[int, float] = {}
    before = x
    for t in range(last, -1, -1):
        found[t] = clean(x, t)
        if method == "unipc" and t < last:
            x = uni_pc(alpha, sigma, lam, found, t + 1, before, order[t + 1])
        if t == 0:
            break
        before = x
        h = lam[t - 1] - lam[t]
        direction = found[t]
        if order[t] == 2:
            r = (lam[t] - lam[t + 1]) / h
            direction = (1 + 1 / (2 * r)) * found[t] - 1 / (2 * r) * found[t + 1]
        x = sigma[t - 1] / sigma[t] * x - alpha[t - 1] * np.expm1(-h) * direction
    return found[0]


def uni_pc(alpha, sigma, lam, found, s: int, x: float, order: int) -> float:
    """UniC of the given order with B(h) = e^h - 1 for the step from s to s - 1, data prediction."""
    t = s - 1
    h = lam[t] - lam[s]
    scale = np.expm1(-h)
    points = [(lam[s + 1] - lam[s]) / h] if order == 2 else []
    differences = [(found[s + 1] - found[s]) / points[0]] if order == 2 else []
    points, differences = [*points, 1.0], [*differences, found[t] - found[s]]
    if order == 1:
        weights = np.array([0.5])
    else:
        # phi_1 to phi_3 of -h; the factorials belong to the definition.
        phi2 = (scale / -h - 1) / -h
        phi3 = (phi2 - 0.5) / -h
        matrix = np.vander(points, increasing=True).T
        weights = np.linalg.solve(matrix, np.array([phi2, 2 * phi3]) * -h / scale)
    base = sigma[t] / sigma[s] * x - alpha[t] * scale * found[s]
    return base - alpha[t] * scale * float(np.dot(weights, differences))


def optimal(data: Gaussian, chain: Schedule) -> Callable[[float, int], float]:
    signal = np.sqrt(chain.alphas_bar)
    gain = data.std**2 * signal / data.marginal_variance(chain.alphas_bar)
    return lambda x, t: data.mean + gain[t] * (x - signal[t] * data.mean)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("method", ["dpm_solver", "unipc"])
def test_mean_and_variance_are_those_of_the_published_loop(
    method: str, name: str, prediction: Prediction
) -> None:
    training, chain, config = chain_of(name, method)
    mean, variance = moments(WIDE.denoiser(training, prediction), chain, config, prediction)
    clean = optimal(WIDE, chain)
    expected = published(chain, clean, 0.0, method)
    std = published(chain, clean, 1.0, method) - expected
    # A line through two predictions takes them with factors up to 2 and -1.
    relative = 3 * rounding(chain, prediction)
    assert mean == pytest.approx(expected, abs=relative * (WIDE.mean + WIDE.std))
    assert np.sqrt(variance) == pytest.approx(std, rel=relative)


@cache
def deviation_error(data: Gaussian, name: str, method: str, num_steps: int, spacing: str) -> float:
    """Relative error of the samples' standard deviation; 0 for infinitely many steps."""
    training = {"cosine": COSINE, "linear": LINEAR}[name]
    config = SamplerConfig(
        method=method,  # type: ignore[arg-type]
        num_steps=num_steps,
        spacing=spacing,  # type: ignore[arg-type]
        thresholding="none",
    )
    chain = sampling_schedule(training, config)
    mean, variance = moments(data.denoiser(training, "v"), chain, config, "v")
    flow_mean, flow_std = exact_flow(data, chain)
    error = np.sqrt(variance) / flow_std - 1
    # The mean moves with the same factor: x_T starts at 0 and not at sqrt(abar_T) mu.
    start = np.sqrt(chain.alphas_bar[-1]) * data.mean
    assert abs(mean - flow_mean) <= abs(error) * flow_std * abs(start) + 1e-4
    return float(error)


@pytest.mark.parametrize("data", [NARROW, WIDE])
@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize(("method", "falls"), [("ddim", 1.9), ("dpm_solver", 3.5), ("unipc", 6.0)])
def test_order_of_convergence(method: str, falls: float, name: str, data: Gaussian) -> None:
    """Twice the steps: DDIM halves its error, order 2 quarters it; UniPC corrects to order 3."""
    few = abs(deviation_error(data, name, method, 20, "log_snr"))
    many = abs(deviation_error(data, name, method, 40, "log_snr"))
    assert few / many >= falls
    assert few < 0.02 or method == "ddim"


@pytest.mark.parametrize("data", [NARROW, UNIT])
@pytest.mark.parametrize("method", ["dpm_solver", "unipc"])
def test_even_timesteps_need_a_first_order_end(method: str, data: Gaussian) -> None:
    """The long step into t = 0 is of order 1; of order 2 it makes NARROW worse than DDIM."""
    error = abs(deviation_error(data, "cosine", method, 20, "respaced"))
    assert error < 0.005
    assert error < abs(deviation_error(data, "cosine", "ddim", 20, "respaced")) / 10


def test_orders_of_the_steps() -> None:
    even = orders(sampling_schedule(COSINE, SamplerConfig(num_steps=20)))
    assert list(even) == [1, 1, *[2] * 17, 1]
    options = {"method": "dpm_solver", "spacing": "log_snr"}
    log = orders(sampling_schedule(COSINE, SamplerConfig(num_steps=20, **options)))  # type: ignore[arg-type]
    assert list(log) == [1, 1, *[2] * 17, 1]
    short = orders(sampling_schedule(COSINE, SamplerConfig(num_steps=14, **options)))  # type: ignore[arg-type]
    assert list(short) == [1, 1, *[2] * 11, 1]
    for steps in (1, 2):
        assert set(orders(sampling_schedule(COSINE, SamplerConfig(num_steps=steps)))) == {1}
    # Neighbours as 599 and 600 of GLIDE's sections would be extrapolated by a factor of 50.
    fast = sampling_schedule(COSINE, SamplerConfig(num_steps="fast27"))
    assert orders(fast)[list(fast.timesteps).index(599)] == 1


def test_a_chain_of_one_step_is_the_prediction() -> None:
    chain = sampling_schedule(COSINE, SamplerConfig(num_steps=1))
    np.testing.assert_array_equal(predictor_table(chain), [[0, 1, 0]])
    np.testing.assert_array_equal(corrector_table(chain), [[1, 0, 0, 0]])


def test_every_row_of_the_tables_keeps_a_constant_prediction_exact() -> None:
    """x_0 known: x_t = alpha x_0 + sigma eps stays on its line, whatever the history."""
    chain = sampling_schedule(COSINE, SamplerConfig(num_steps=25))
    x0, eps = 1.7, -0.6
    states = np.sqrt(chain.alphas_bar) * x0 + np.sqrt(1 - chain.alphas_bar) * eps
    predicted = predictor_table(chain) @ [[0], [1], [1]] * x0
    predicted = predicted[:, 0] + predictor_table(chain)[:, 0] * states
    np.testing.assert_allclose(predicted, [x0, *states[:-1]], rtol=0, atol=1e-14)
    table = corrector_table(chain)[:-1]
    corrected = table[:, 0] * states[1:] + table[:, 1:].sum(axis=1) * x0
    np.testing.assert_allclose(corrected, states[:-1], rtol=0, atol=1e-14)


def test_the_corrector_integrates_parabolas_exactly() -> None:
    """Its three points determine the parabola; the integral is taken with Gauss's rule."""
    chain = sampling_schedule(LINEAR, SamplerConfig(num_steps=30))
    lam = np.log(chain.alphas_bar / (1 - chain.alphas_bar)) / 2
    sigma = np.sqrt(1 - chain.alphas_bar)

    def clean(at: np.ndarray | float) -> np.ndarray | float:
        return 0.3 - 0.8 * at + 0.25 * at**2

    nodes, weights = np.polynomial.legendre.leggauss(40)
    checked = 0
    for t in range(len(chain) - 2):
        if orders(chain)[t + 1] == 1:
            continue
        low, high = lam[t + 1], lam[t]
        at = (high + low) / 2 + (high - low) / 2 * nodes
        integral = np.sum(weights * np.exp(at) * clean(at)) * (high - low) / 2
        x = 0.4
        expected = sigma[t] / sigma[t + 1] * x + sigma[t] * integral
        table = corrector_table(chain)[t]
        got = table @ [x, clean(lam[t]), clean(lam[t + 1]), clean(lam[t + 2])]
        assert got == pytest.approx(expected, rel=1e-10)
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("method", ["dpm_solver", "unipc"])
def test_solvers_start_from_pure_noise(method: str, prediction: Prediction) -> None:
    """abar = 0 is lambda = -inf: that step and the next, which cannot extrapolate, are finite."""
    training = zero_terminal_snr(COSINE)
    config = SamplerConfig(method=method, num_steps=25, thresholding="none")  # type: ignore[arg-type]
    chain = sampling_schedule(training, config)
    assert chain.alphas_bar[-1] == 0
    assert np.isfinite(predictor_table(chain)).all() and np.isfinite(corrector_table(chain)).all()
    mean, variance = moments(NARROW.denoiser(training, prediction), chain, config, prediction)
    flow_mean, flow_std = exact_flow(NARROW, chain)
    assert flow_mean == NARROW.mean
    assert mean == pytest.approx(NARROW.mean, abs=3 * rounding(chain, prediction))
    assert np.sqrt(variance) == pytest.approx(flow_std, rel=0.01)
