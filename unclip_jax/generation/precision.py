"""The type in which a stage's networks compute when they sample, whatever they were trained in.

What they are given and return stays float32, and so do norms, softmax and the sampler's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from unclip_jax.config import Dtype
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
        return replace(stage, recipe=replace(recipe, model=_in(recipe.model, dtype)))

    return found


def _in(config: Any, dtype: Dtype) -> Any:
    """A model's config with this compute dtype, in all towers that it is made of."""
    changed: dict[str, Any] = {}
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        if is_dataclass(value):
            changed[name] = _in(value, dtype)
        elif name == "dtype":
            changed[name] = dtype
    return replace(config, **changed)
