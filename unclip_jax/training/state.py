"""The whole of a run that a checkpoint holds: arrays only."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from unclip_jax.training.guard import GuardState, init_guard


class TrainState(struct.PyTreeNode):
    """Step, weights, averaged weights and optimiser state; all float32 but the int32 step."""

    step: Array
    params: Any
    ema_params: Any
    opt_state: Any
    guard: GuardState


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0; the average starts as a copy of the weights."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        guard=init_guard(),
    )


def update_ema(ema_params: Any, params: Any, decay: float, step: Array) -> Any:
    """ema <- d ema + (1 - d) params with d = min(decay, (1 + step) / (10 + step)).

    The bound lets a young average forget the random weights it started from; it reaches 0.9999
    after 90,000 steps, so most of a run of the paper's length is not touched by it.
    """
    count = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda average, new: d * average + (1 - d) * new, ema_params, params)
