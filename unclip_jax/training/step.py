"""One optimiser step as one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from unclip_jax.training.guard import watch
from unclip_jax.training.objectives import Gradient, Metrics
from unclip_jax.training.state import TrainState, update_ema

Step = Callable[[TrainState, Any, dict[str, Array], Array], tuple[TrainState, Metrics]]


def make_train_step(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    accumulate: int = 1,
    spike: float = 0.0,
) -> Step:
    """A pure function (state, frozen, batch, root key) → (next state, scalar metrics).

    The step's randomness is fold_in(root key, step), so a resumed run needs no key of its own. With
    `accumulate` > 1 a scan runs over that many equal micro-batches and averages their gradients.

    A step whose loss or gradient is not finite, or whose loss is a spike, changes nothing but the
    step's number: the decision is made here, from the loss of the whole batch, so all hosts agree.

    Args:
        gradient: `jax.value_and_grad(objective, has_aux=True)`, or `make_sam_gradient`'s.
        spike: see `GuardConfig`.
    """

    def loss_and_gradient(
        params: Any, frozen: Any, batch: dict[str, Array], key: Array
    ) -> tuple[Any, Metrics]:
        if accumulate == 1:
            (loss, metrics), grads = gradient(params, frozen, batch, key)
            return grads, {"loss": loss, **metrics}

        def micro(total: Any, item: tuple[dict[str, Array], Array]) -> tuple[Any, Metrics]:
            part, index = item
            (loss, metrics), grads = gradient(params, frozen, part, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, grads), {"loss": loss, **metrics}

        # Strided rows, so that every micro-batch is spread over all devices as the batch is.
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(
                x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 1, 0
            ),
            batch,
        )
        zeros = jax.tree.map(jnp.zeros_like, params)
        total, metrics = jax.lax.scan(micro, zeros, (parts, jnp.arange(accumulate)))
        mean = jax.tree.map(lambda x: x / accumulate, total)
        return mean, jax.tree.map(jnp.mean, metrics)

    def step(
        state: TrainState, frozen: Any, batch: dict[str, Array], root_key: Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(root_key, state.step)
        grads, metrics = loss_and_gradient(state.params, frozen, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = metrics["gradient_norm"] = optax.tree.norm(grads)
        ema_params = update_ema(state.ema_params, params, ema_decay, state.step)
        is_good, watched = watch(state.guard, metrics["loss"], norm, spike)
        metrics["skipped_steps"] = watched.skipped
        metrics["skipped_in_a_row"] = watched.in_a_row

        def kept(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(is_good, a, b), new, old)

        next_state = TrainState(
            step=state.step + 1,
            params=kept(params, state.params),
            ema_params=kept(ema_params, state.ema_params),
            opt_state=kept(opt_state, state.opt_state),
            guard=watched,
        )
        return next_state, metrics

    return step
