"""Which checkpoints of a run stay on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping

from unclip_jax.config import CheckpointConfig


def steps_to_keep(losses: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """Of the good checkpoints, those that stay: the newest, every so many steps, the best.

    Args:
        losses: step → running average of the loss when it was saved.
    """
    newest = sorted(losses)[-config.keep :]
    spaced = [step for step in losses if config.keep_every and step % config.keep_every == 0]
    known = {step: loss for step, loss in losses.items() if loss is not None}
    ranked = sorted(known, key=lambda step: (math.isnan(known[step]), known[step], -step))
    return {*newest, *spaced, *ranked[: config.keep_best]}
