"""AdamW as the paper uses it, or Muon: warm-up, decay only where it belongs, global clipping."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from unclip_jax.config import OptimConfig
from unclip_jax.models.clip import MAX_LOGIT_SCALE

# Gains, biases and single vectors. Names, not ranks: under `nn.scan` a bias has two dimensions.
UNDECAYED = frozenset(
    {"bias", "scale", "logit_scale", "logit_bias", "class_embedding", "query", "null_embedding"}
)

# Muon's updates get the root mean square of AdamW's (Liu et al. 2025, section 2.2): one learning
# rate means the same for both.
MUON_RMS = 0.2


def decay_mask(params: Any) -> Any:
    """True for each leaf that weight decay applies to: all but gains, biases and single vectors."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: str(getattr(path[-1], "key", path[-1])) not in UNDECAYED, params
    )


def make_learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from zero, then constant or a cosine to zero at `steps`."""
    if config.schedule == "cosine":
        rest = optax.cosine_decay_schedule(
            config.learning_rate, max(1, steps - config.warmup_steps)
        )
    else:
        rest = optax.constant_schedule(config.learning_rate)
    if not config.warmup_steps:
        return rest
    warmup = optax.linear_schedule(
        config.learning_rate / config.warmup_steps, config.learning_rate, config.warmup_steps
    )
    return optax.join_schedules([warmup, rest], [config.warmup_steps])


def matrix_axes(params: Any) -> Any:
    """For each kernel, which axes Muon takes as a matrix's rows and columns; None goes to Adam.

    A convolution [H, W, in, out] is the matrix [H * W * in, out]; in [layers, in, out], stacked by
    `nn.scan`, each layer is a matrix of its own.
    """

    def axes(path: Any, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if getattr(path[-1], "key", None) != "kernel" or leaf.ndim < 2:
            return None
        rows = (0, 1, 2) if leaf.ndim == 4 else leaf.ndim - 2
        return optax.contrib.MuonDimensionNumbers(rows, leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def _optimizer_names(params: Any) -> Any:
    """'muon' for each leaf that is a matrix, else 'adamw'."""
    axes = matrix_axes(params)
    return jax.tree.map(lambda leaf: "adamw" if leaf is None else "muon", axes, is_leaf=_is_axes)


def _is_axes(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, optax.contrib.MuonDimensionNumbers)


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip, then AdamW (Loshchilov & Hutter 2019) or Muon (Jordan 2024), with `decay_mask`."""
    learning_rate = make_learning_rate(config, steps)
    optimizer = optax.adamw(
        learning_rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
        mu_dtype=config.mu_dtype,
    )
    if config.optimizer == "muon":
        # optax.contrib.muon has an AdamW for the rest, but one without the mask.
        muon = optax.contrib.muon(
            learning_rate,
            weight_decay=config.weight_decay,
            mu_dtype=config.mu_dtype,
            muon_weight_dimension_numbers=matrix_axes,
            consistent_rms=MUON_RMS,
        )
        optimizer = optax.partition({"muon": muon, "adamw": optimizer}, _optimizer_names)
    parts = [optimizer, bound_logit_scale()]
    if config.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*parts)


def bound_logit_scale() -> optax.GradientTransformation:
    """Keeps CLIP's `logit_scale` at ln 100 or below (Radford et al. 2021, section 2.5).

    The update is cut, not the value in the forward pass: there the gradient would vanish at the
    bound, and the temperature could never come back.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def bounded(path: Any, change: Any, value: Any) -> Any:
            if getattr(path[-1], "key", None) != "logit_scale":
                return change
            return jnp.minimum(change, MAX_LOGIT_SCALE - value)

        return jax.tree_util.tree_map_with_path(bounded, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
