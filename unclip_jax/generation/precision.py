"""The type in which a stage's networks compute when they sample, whatever they were trained in.

What they are given and return stays float32, and so do norms, softmax and the sampler's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from unclip_jax.config import Dtype, with_fields
from unclip_jax.training.weights import Stage


def computing_in(find: Callable[[str], Stage], dtype: Dtype | None) -> Callable[[str], Stage]:
    """`find`, a stage by its name, with every network of a stage computing in `dtype`.

    Args:
        dtype: None leaves each stage as it was trained.
    """
    if dtype is None:
        return find

    def found(name: str) -> Stage:
        stage = find(name)
        recipe: Any = stage.recipe
        if not hasattr(recipe, "model"):
            return stage
        return replace(stage, recipe=replace(recipe, model=with_fields(recipe.model, dtype=dtype)))

    return found
