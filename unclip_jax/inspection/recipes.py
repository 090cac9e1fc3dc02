"""The parameters of a recipe, without making them."""

from __future__ import annotations

import jax

from unclip_jax.inspection.findings import Leaf
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import flatten


def recipe_leaves(recipe: Recipe) -> dict[str, Leaf]:
    """Shape and type of every parameter, by name; no memory is taken."""
    shapes = flatten(jax.eval_shape(lambda: init_params(recipe, jax.random.key(0))))
    return {
        name: Leaf(leaf.shape, str(leaf.dtype), leaf.size * leaf.dtype.itemsize)
        for name, leaf in shapes.items()
    }
