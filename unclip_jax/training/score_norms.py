"""Gamma of every timestep of a diffusion prior, measured on held-out pairs, and its file.

What `diffusion.analytic` makes the best sampling variances of (Bao et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unclip_jax.diffusion.analytic import score_norms
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.models.prior import DiffusionPrior
from unclip_jax.training.objectives.conditions import Pairs
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.run import training_chain

FILE = "score_norms.safetensors"


def measure_score_norms(
    recipe: PriorRecipe,
    params: Any,
    batches: Iterable[Pairs],
    *,
    seed: int = 0,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Gamma of all T training timesteps, of the prior under its caption, unguided.

    See `diffusion.analytic.score_norms`.

    Row i of the pass has its noise of fold_in(seed, i): how the rows are cut into batches changes
    nothing but rounding. Each batch costs T calls of the network.

    Args:
        params: of the prior.
        batches: what its CLIP makes of held-out data, one batch or more.
        on_rows: told the number of rows that are done, after each batch.
    Returns:
        [T] float32.
    """
    module, chain = DiffusionPrior(recipe.model), training_chain(recipe.diffusion)
    diffusion, root = recipe.diffusion, jax.random.key(seed)

    @jax.jit
    def measure(
        params: Any, image: Array, text: Array, states: Array, mask: Array, keys: Array
    ) -> Array:
        def denoise(xt: Array, t: Array) -> Array:
            output: Any = module.apply({"params": params}, xt, t, text, states, mask)
            return output

        x0 = image * recipe.model.scale
        return score_norms(denoise, chain, x0, keys, diffusion.prediction, diffusion.variance)

    total, done = np.zeros(len(chain)), 0
    for pairs in batches:
        rows = len(pairs.image)
        keys = jax.vmap(partial(jax.random.fold_in, root))(jnp.arange(done, done + rows))
        gamma = measure(params, pairs.image, pairs.text, pairs.states, pairs.mask, keys)
        total += rows * np.asarray(gamma, np.float64)
        done += rows
        on_rows(done)
    return (total / done).astype(np.float32)


def save_score_norms(gamma: np.ndarray, path: Path, step: int) -> None:
    """Write {"score_norms": [T] float32} as safetensors, whole or not at all.

    Args:
        step: of the weights that were measured, kept in the file's metadata.
    """
    from safetensors.numpy import save

    arrays = {"score_norms": np.asarray(gamma, np.float32)}
    write_whole(path, save(arrays, metadata={"step": str(step)}))


def load_score_norms(path: Path, num_timesteps: int, step: int) -> np.ndarray | None:
    """[T] float32; None where there is no file, or one of weights at another step.

    Raises:
        UserError: the file is damaged, of another number of timesteps, or not finite.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    again = "delete it, and make it anew with `unclip fit-variance`"
    try:
        with safe_open(path, framework="numpy") as file:
            measured = (file.metadata() or {}).get("step")
            gamma = np.asarray(file.get_tensor("score_norms"), np.float32)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): {again}") from error
    if gamma.shape != (num_timesteps,):
        raise UserError(f"{path} has shape {gamma.shape}, the prior {num_timesteps} steps: {again}")
    if not np.isfinite(gamma).all():
        raise UserError(f"{path} has numbers that are not finite: {again}")
    return gamma if measured in (None, str(step)) else None
