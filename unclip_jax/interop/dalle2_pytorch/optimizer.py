"""How DALLE2-pytorch's trainers change weights, on optax: to continue an imported run as it began.

AdamW with betas (0.9, 0.99) after clipping by the global norm; weight decay for what PyTorch
stores with two or more axes; an average whose decay grows with its age (`ema-pytorch`). Our own
`training.optim` decays by name instead and warms up half a step later, so it is not this one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from unclip_jax.errors import UserError
from unclip_jax.interop.dalle2_pytorch import prior, unet
from unclip_jax.interop.dalle2_pytorch.prior_config import PriorNetworkConfig
from unclip_jax.interop.dalle2_pytorch.prior_keys import prior_key_map
from unclip_jax.interop.dalle2_pytorch.unet_config import UnetConfig
from unclip_jax.interop.dalle2_pytorch.unet_keys import unet_key_map, unused_parameters
from unclip_jax.interop.key_map import KeyMap
from unclip_jax.training.sharding import path_name

_CLIP_EPSILON = 1e-6
"""Added to the norm that PyTorch divides by."""


@dataclass(frozen=True)
class OptimizerConfig:
    """A trainer's options for one network."""

    learning_rate: float
    eps: float
    clip_norm: float | None
    """Largest global norm of the gradient; None does not clip."""
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int | None = None
    """Step n of the first `warmup_steps`, from 1, has n / warmup_steps of the learning rate."""
    cosine_decay_max_steps: int | None = None
    """Half a period of the cosine, which goes on: after it the rate rises again."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "clip_norm", "warmup_steps", "cosine_decay_max_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} is {value}: give a positive number")
        if self.weight_decay < 0:
            raise UserError(f"weight_decay is {self.weight_decay}: give 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas are {self.betas}: give two numbers from 0 to below 1")


PRIOR_OPTIMIZER = OptimizerConfig(learning_rate=3e-4, eps=1e-6, clip_norm=None)
"""`DiffusionPriorTrainer`'s defaults."""
DECODER_OPTIMIZER = OptimizerConfig(learning_rate=1e-4, eps=1e-8, clip_norm=0.5)
"""`DecoderTrainer`'s defaults for each U-Net."""


def prior_decay_mask(config: PriorNetworkConfig, *, every: bool = False) -> Any:
    """Which parameters of a prior's network decay: a tree of bool.

    Args:
        every: all of them, as with `group_wd_params` off.
    """
    return decay_mask(prior_key_map(config), prior.abstract_params(config), every=every)


def unet_decay_mask(config: UnetConfig, *, every: bool = False) -> Any:
    """Which parameters of a U-Net decay; those that no output depends on never do."""
    unused = unused_parameters(config)
    return decay_mask(
        unet_key_map(config), unet.abstract_params(config), every=every, unused=unused
    )


def decay_mask(
    key_map: KeyMap, abstract: Any, *, every: bool = False, unused: Collection[str] = ()
) -> Any:
    """True for each parameter that a file holds with two or more axes.

    Ours may have more axes (layers in one stack) or fewer (an axis of length 1 dropped).

    Args:
        abstract: tree of the parameters, or of their shapes.
        every: whatever the axes are.
        unused: first path parts of parameters without a gradient, which PyTorch leaves alone;
            here it is zero, and they would decay.
    """
    layouts = {entry.target: entry.layout for entry in key_map}

    def decays(path: Any, leaf: Any) -> bool:
        name = path_name(path)
        if name.split("/")[0] in unused:
            return False
        parts = layouts[name].write(np.broadcast_to(np.int8(0), leaf.shape))
        return every or parts[0].ndim >= 2

    return jax.tree_util.tree_map_with_path(decays, abstract)


def make_learning_rate(config: OptimizerConfig) -> Callable[[Any], Array]:
    """The rate of step 0, 1, ...: constant or a cosine, times a linear warm-up."""

    def learning_rate(count: Any) -> Array:
        rate = jnp.float32(config.learning_rate)
        if config.cosine_decay_max_steps is not None:
            phase = jnp.pi * count / config.cosine_decay_max_steps
            rate = rate * 0.5 * (1 + jnp.cos(phase))
        if config.warmup_steps is not None:
            rate = rate * jnp.minimum(1.0, (count + 1) / config.warmup_steps)
        return rate

    return learning_rate


def make_optimizer(config: OptimizerConfig, decayed: Any) -> optax.GradientTransformation:
    """Clipping, then AdamW (Loshchilov & Hutter 2019) as PyTorch computes it.

    Args:
        decayed: tree of bool as the parameters', from one of the masks above.
    """
    b1, b2 = config.betas
    adamw = optax.adamw(
        make_learning_rate(config),
        b1=b1,
        b2=b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(clip_by_norm(config.clip_norm), adamw)


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales a gradient of norm n by min(1, max_norm / (n + 1e-6))."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + _CLIP_EPSILON))
        return jax.tree.map(lambda leaf: leaf * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@dataclass(frozen=True)
class EmaConfig:
    """The average of the weights; defaults and names are ema-pytorch's."""

    beta: float = 0.9999
    """Largest decay. At 1 nothing is averaged, and the last copy stays."""
    update_after_step: int = 100
    """Until here the average is a copy."""
    update_every: int = 10
    inv_gamma: float = 1.0
    power: float = 2 / 3
    min_value: float = 0.0
    """Smallest decay, once there is one."""

    def __post_init__(self) -> None:
        if self.update_every < 1 or self.update_after_step < 0:
            raise UserError(
                f"update_every is {self.update_every} and update_after_step "
                f"{self.update_after_step}: give 1 or more, and 0 or more"
            )
        if not (0 <= self.min_value <= self.beta <= 1):
            raise UserError(
                f"min_value is {self.min_value} and beta {self.beta}: give numbers from 0 to 1, "
                "the first not above the second"
            )
        if self.inv_gamma <= 0 or self.power <= 0:
            raise UserError(
                f"inv_gamma is {self.inv_gamma} and power {self.power}: give positive numbers"
            )


def ema_decay(step: Array | int, config: EmaConfig = EmaConfig()) -> Array:
    """1 - (1 + age / inv_gamma)^-power between `min_value` and `beta`; 0 at age 0.

    Args:
        step: int32, the updates so far, the current one included; the age is
            step - update_after_step - 1.
    Returns:
        float32.
    """
    age = jnp.maximum(jnp.float32(step) - config.update_after_step - 1, 0)
    value = 1 - (1 + age / config.inv_gamma) ** -config.power
    return jnp.where(age > 0, jnp.clip(value, config.min_value, config.beta), 0)


def update_ema(
    average: Any, params: Any, updates: Array | int, config: EmaConfig = EmaConfig()
) -> Any:
    """The average after one more update: a copy at first, then decay average + (1 - decay) params.

    Args:
        average, params: trees of float32.
        updates: int32, updates before this one; only multiples of `update_every` change anything.
    """
    updates = jnp.int32(updates)
    copied = (updates == 0) | (updates <= config.update_after_step)
    share = 0.0 if config.beta == 1 else 1 - ema_decay(updates + 1, config)
    share = jnp.where(copied, 1.0, share)
    share = jnp.where(updates % config.update_every == 0, share, 0.0)

    def mixed(old: Array, new: Array) -> Array:
        # From the nearer end: a copy is a copy, and a skipped update changes no bit.
        step = new - old
        return jnp.where(share < 0.5, old + share * step, new - step * (1 - share))

    return jax.tree.map(mixed, average, params)
