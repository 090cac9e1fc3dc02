"""A run that starts from the weights of another: what fits is taken, what is new starts as it does.

An inpainting network is a plain one whose first convolution has four more input channels (Nichol et
al. 2021, section 2.1): the kernel's rows for them start at zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.training.processes import place, together
from unclip_jax.training.recipe import Recipe, stage_of
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
from unclip_jax.training.sharding import path_name
from unclip_jax.training.state import TrainState
from unclip_jax.training.weights import Stage, flatten, load_stage, shipped_model


def start_from(recipe: Recipe, state: TrainState) -> TrainState:
    """A new run's state with the averaged weights of `recipe.init_from`, if it names any.

    Args:
        state: as the recipe begins it, on its mesh; its optimiser state stays.
    Raises:
        UserError: there is no such stage, or it does not fit; names the first weight.
    """
    if recipe.init_from is None:
        return state
    with together():
        stage = load_initial(recipe, recipe.init_from)
        check_fits(flatten(state.params), flatten(stage.params), recipe.init_from)
    source = flatten(stage.params)

    def leaf(path: Any, own: jax.Array) -> jax.Array:
        given = source.get(path_name(path))
        return own if given is None else place(padded(given, own.shape), own.sharding)

    params = jax.tree_util.tree_map_with_path(leaf, state.params)
    return state.replace(params=params, ema_params=jax.tree.map(jax.numpy.copy, params))


def load_initial(recipe: Recipe, source: str) -> Stage:
    """The stage that `init_from` names, on the host: of a shipped model that of the same kind.

    Raises:
        UserError: it cannot be read, or is of another kind.
    """
    kind, folder = stage_of(recipe), Path(source)
    if (model := shipped_model(source)) is not None:
        if isinstance(recipe, UpsamplerRecipe):
            kind = f"upsampler_{recipe.data.image_size}"
        folder = model / kind
    stage = load_stage(folder, as_stored=True)
    if stage_of(stage.recipe) != stage_of(recipe):
        raise UserError(
            f"init_from {source} holds a {stage_of(stage.recipe)}, the recipe trains a "
            f"{stage_of(recipe)}: name a run or a folder of one"
        )
    return stage


def check_fits(own: dict[str, Any], given: dict[str, Any], source: str) -> None:
    """UserError unless every given weight is one of the network's, and has its shape, or is a
    kernel with fewer input channels."""
    for name, array in sorted(given.items()):
        if name not in own:
            raise UserError(
                f"init_from {source} has a weight {name}, which the recipe's network lacks: give "
                "the recipe the same model, or name another stage"
            )
        have, need = tuple(array.shape), tuple(own[name].shape)
        is_grown = (
            name.endswith("/kernel")
            and len(have) == len(need)
            and (*have[:-2], have[-1]) == (*need[:-2], need[-1])
            and have[-2] < need[-2]
        )
        if have != need and not is_grown:
            raise UserError(
                f"init_from {source}: {name} has shape {have}, the recipe's network needs {need}: "
                "give the recipe the same model, or name another stage"
            )


def padded(array: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The array in float32, with zeros where it ends before `shape`."""
    missing = [(0, need - have) for have, need in zip(array.shape, shape, strict=True)]
    return np.pad(np.asarray(array, np.float32), missing)
