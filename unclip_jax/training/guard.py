"""Whether a step may change the weights, decided inside the compiled step.

A batch whose loss or gradient is not finite, or whose loss is far above all recent ones, is left
out: what PaLM did by hand about spikes (Chowdhery et al. 2022, section 5.1).
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import Array

DECAY = 0.98
"""A step, of the running average of the loss."""
PEAK_DECAY = 0.9
"""A step, of the highest loss: what is highest of late is so of the last twenty steps or so."""
YOUNG = 5
"""Steps before which too little is known for a loss to be called a spike."""


class GuardState(struct.PyTreeNode):
    """What is remembered of the steps so far; scalars."""

    total: Array
    """float32, the running average of the loss before its bias correction."""
    peak: Array
    """float32, the highest loss of late."""
    accepted: Array
    """int32, steps that changed the weights."""
    skipped: Array
    """int32, steps that did not."""
    in_a_row: Array
    """int32, of those, the ones since the last that did."""


def init_guard() -> GuardState:
    """Nothing seen yet."""
    none = jnp.zeros((), jnp.int32)
    zero = jnp.zeros(())
    return GuardState(total=zero, peak=zero, accepted=none, skipped=none, in_a_row=none)


def running_loss(state: GuardState) -> Array:
    """Average loss of the steps that counted, the last fifty the most; NaN before the first.

    Returns:
        scalar float32.
    """
    return state.total / (1 - DECAY ** state.accepted.astype(jnp.float32))


def watch(state: GuardState, loss: Array, norm: Array, spike: float) -> tuple[Array, GuardState]:
    """Whether this step counts, and what is remembered after it.

    Args:
        loss, norm: scalar float32 of the whole batch: the loss and the gradient's norm.
        spike: a loss above this many times the highest of late does not count; 0 lets it. Not the
            average: a small batch that is almost learned has losses of many times that.
    Returns:
        scalar bool, and the next state.
    """
    is_good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if spike:
        is_spike = (state.accepted >= YOUNG) & (loss > spike * state.peak)
        is_good &= ~is_spike
    peak = jnp.where(is_good, jnp.maximum(jnp.abs(loss), PEAK_DECAY * state.peak), state.peak)
    total = jnp.where(is_good, DECAY * state.total + (1 - DECAY) * loss, state.total)
    counted = is_good.astype(jnp.int32)
    return is_good, GuardState(
        total=total,
        peak=peak,
        accepted=state.accepted + counted,
        skipped=state.skipped + 1 - counted,
        in_a_row=(state.in_a_row + 1) * (1 - counted),
    )
