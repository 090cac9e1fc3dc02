"""Multistep solvers of the probability flow: DPM-Solver++(2M) and UniPC-2, in x_0.

With lambda = log(sqrt(abar) / sqrt(1 - abar)), sigma = sqrt(1 - abar) and x_0(l) the prediction at
lambda = l, a step from lambda to lambda' is exactly (DPM-Solver++, Lu et al. 2022)

    x' = (sigma' / sigma) x + sigma' int_lambda^lambda' e^l x_0(l) dl.

With x_0 constant the integral is a DDIM step, gain * x_0 with gain = sqrt(abar') - sqrt(abar)
sigma' / sigma. The solvers put a line or a parabola through the predictions they remember:

    predictor     gain (D + (h / 2 h1) (D - D1))        h, h1 the lengths of this step and the last
    corrector     gain (D1 + p (D2 - D1) + q (D - D1))  of the step that has just been made, when
                                                        the network has seen where it led

D, D1, D2 are the predictions at t, t + 1, t + 2. The predictor alone is DPM-Solver++(2M) (algorithm
2); corrected, it is UniPC of order 2 with B(h) = e^h - 1 (Zhao et al. 2023), at the
same cost: one call of the network a step.

Steps that have nothing to look back on are of order 1 (DDIM): the first; the one into t = 0 in
chains of fewer than 15 steps; and any that is more than twice as long as the one before, because
that extrapolates too far. The step into t = 0 is such a one. With evenly spaced timesteps, for
N(0.7, 0.5^2) and 20 steps of a cosine chain, order 2 there makes the deviation wrong by 10 %, order
1 by 0.3 %. The prediction at t = 0 is the sample.
"""

from __future__ import annotations

import numpy as np
from jax import Array

from unclip_jax.diffusion.process import extract
from unclip_jax.diffusion.schedule import Schedule

History = tuple[Array, Array, Array]
"""x_{t+1} as it was corrected, and the predictions of x_0 at t + 1 and t + 2, each [B, ...]."""

_SHORT_CHAIN = 15
_LONGEST_EXTRAPOLATION = 2.0


def solver_step(
    schedule: Schedule, x0: Array, xt: Array, t: Array, history: History, *, corrects: bool
) -> tuple[Array, History]:
    """x_{t-1} and what the next step has to remember.

    Args:
        x0: [B, ...] float32, the prediction at x_t, thresholded and steered.
        xt: [B, ...] float32, what the network was given.
        t: [B] int32 in [0, N).
        history: at the start of the chain (x_T, zeros, zeros).
        corrects: UniPC; otherwise DPM-Solver++(2M).
    """
    previous, x0_1, x0_2 = history
    if corrects:
        xt = _combine(corrector_table(schedule), t, (previous, x0, x0_1, x0_2))
    following = _combine(predictor_table(schedule), t, (xt, x0, x0_1))
    return following, (xt, x0, x0_1)


def orders(schedule: Schedule) -> np.ndarray:
    """The order, 1 or 2, of the step that leaves t, [N]; the module's docstring has the rule."""
    order = np.ones(len(schedule), dtype=int)
    lengths = _lengths(schedule)
    for t in range(1, len(schedule) - 1):
        ends_short_chain = t == 1 and len(schedule) < _SHORT_CHAIN
        if lengths[t] <= _LONGEST_EXTRAPOLATION * lengths[t + 1] and not ends_short_chain:
            order[t] = 2
    return order


def predictor_table(schedule: Schedule) -> np.ndarray:
    """Factors of (x_t, D, D1) in x_{t-1}, [N, 3] float64; those of t = 0 are (0, 1, 0)."""
    ratio, gain = _first_order(schedule)
    lengths, order = _lengths(schedule), orders(schedule)
    slope = np.zeros(len(schedule))
    for t in np.flatnonzero(order == 2):
        slope[t] = lengths[t] / (2 * lengths[t + 1])
    return np.stack([ratio, gain * (1 + slope), -gain * slope], axis=1)


def corrector_table(schedule: Schedule) -> np.ndarray:
    """Factors of (x_{t+1}, D, D1, D2) in the corrected x_t, [N, 4] float64.

    Those of the last t are (1, 0, 0, 0), for x_T with a history that begins with x_T itself. With
    order 2, p and q are the ones for which the integral is exact where x_0 is a parabola in lambda.
    """
    table = np.zeros((len(schedule), 4))
    table[-1, 0] = 1
    ratio, gain = _first_order(schedule)
    lengths, order = _lengths(schedule), orders(schedule)
    for t in range(len(schedule) - 1):
        start = t + 1
        p, q = 0.0, 0.5
        if order[start] == 2:
            h, before = lengths[start], -lengths[start + 1] / lengths[start]
            scale = np.expm1(-h)
            first = (-scale / h - 1) / scale
            second = 2 * ((scale / h + 1) / h - 0.5) / scale
            # UniPC's order conditions: share + q = first and before * share + q = second.
            share = (first - second) / (1 - before)
            p, q = share / before, first - share
        table[t] = ratio[start], gain[start] * q, gain[start] * (1 - p - q), gain[start] * p
    return table


def _lengths(schedule: Schedule) -> np.ndarray:
    """lambda_{t-1} - lambda_t, [N]; infinite at t = 0, and where a step leaves abar = 0."""
    return np.append(np.inf, schedule.log_snr[:-1]) - schedule.log_snr


def _first_order(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """sigma' / sigma and the gain of every step, [N] each."""
    ratio = np.sqrt(1 - schedule.alphas_bar_prev) / schedule.sqrt_one_minus_alphas_bar
    return ratio, np.sqrt(schedule.alphas_bar_prev) - schedule.sqrt_alphas_bar * ratio


def _combine(table: np.ndarray, t: Array, arrays: tuple[Array, ...]) -> Array:
    terms = [extract(table[:, i], t, array.ndim) * array for i, array in enumerate(arrays)]
    return sum(terms[1:], start=terms[0])
