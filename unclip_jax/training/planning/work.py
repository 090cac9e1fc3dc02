"""The work that a recipe's model is, whatever computes it."""

from __future__ import annotations

from typing import Any

import jax

from unclip_jax.config import with_fields
from unclip_jax.training.inputs import Inputs, make_objective
from unclip_jax.training.planning.abstract_inputs import abstract_batch
from unclip_jax.training.planning.flops import training_flops
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.stages import init_params


def step_flops(recipe: Recipe, inputs: Inputs) -> int:
    """Operations of the model in one step of the whole batch, none of them computed again.

    Args:
        inputs: whose arrays may be shapes.
    """
    plain: Any = with_fields(recipe, remat="none", attention="xla")
    objective, frozen = make_objective(plain, inputs)
    params = jax.eval_shape(lambda key: init_params(plain, key), jax.random.key(0))
    batch = abstract_batch(plain, inputs)
    key = jax.eval_shape(lambda: jax.random.key(0))
    count = training_flops(lambda p, *rest: objective(p, *rest)[0], params, frozen, batch, key)
    return count * (2 if recipe.optim.sam_rho else 1)  # the ascent is a second gradient
