"""What each stage minimises. An objective is a pure function (params, frozen, batch, key) → loss.

`batch` holds `image` [B, S, S, 3] uint8 and `tokens` [B, L] int32, and with a store of embeddings
`embedding` [B, E] float32, without `image` for the priors. `frozen` holds the weights of the CLIP
that conditions the priors and the decoder. The loss is a float32 mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import Array

Params = Any
Metrics = dict[str, Array]
Objective = Callable[[Params, Params, dict[str, Array], Array], tuple[Array, Metrics]]
Gradient = Callable[[Params, Params, dict[str, Array], Array], tuple[tuple[Array, Metrics], Params]]
"""As `jax.value_and_grad(objective, has_aux=True)`: ((loss, metrics), gradient)."""
