"""What of a run is compiled: initialisation straight into shards, and the step.

The same program is run by the loop and compiled ahead of time, for devices that are not there, by
`plan`: nothing here holds an array.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from unclip_jax.errors import UserError
from unclip_jax.training.checkpoint import with_shardings
from unclip_jax.training.inputs import Inputs, make_objective
from unclip_jax.training.objectives import Gradient, Objective
from unclip_jax.training.objectives.clip import make_clip_objective
from unclip_jax.training.objectives.steering import make_noised_clip_objective
from unclip_jax.training.optim import make_optimizer
from unclip_jax.training.processes import place
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.noised_clip import NoisedCLIPRecipe
from unclip_jax.training.sam import make_sam_gradient
from unclip_jax.training.sharding import batch_sharding, infer_shardings, replicated
from unclip_jax.training.stages import init_params
from unclip_jax.training.state import TrainState, init_state
from unclip_jax.training.step import Step, make_train_step


@dataclass(frozen=True)
class Program:
    """A recipe's two programs on one mesh, and the shapes of what they work on."""

    mesh: Mesh
    init: Callable[[Array], TrainState]
    """From a key, each device making only what it keeps."""
    step: Step
    """Donates the state. Called with `jax.set_mesh(mesh)`."""
    abstract_state: Any
    """Shapes with their shardings."""
    abstract_frozen: Any
    """Of the arrays that the step reads and never changes."""
    frozen: Any
    """Those arrays, wherever they are now."""

    def place_frozen(self) -> Any:
        """The frozen arrays where the step takes them."""
        return place(self.frozen, jax.tree.map(lambda x: x.sharding, self.abstract_frozen))


def make_program(recipe: Recipe, inputs: Inputs, mesh: Mesh) -> Program:
    """The programs of a run.

    Args:
        inputs: whose frozen arrays may be shapes only, where nothing is run.
    Raises:
        UserError: a batch that the mesh does not divide.
    """
    if recipe.batch_size // recipe.optim.accumulate % mesh.size:
        raise UserError(
            f"batch_size {recipe.batch_size} in {recipe.optim.accumulate} micro-batches is not "
            f"divisible by {mesh.size} devices: change batch_size or optim.accumulate"
        )
    optimizer = make_optimizer(recipe.optim, recipe.steps)

    def init(key: Array) -> TrainState:
        return init_state(init_params(recipe, key), optimizer)

    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = infer_shardings(abstract, mesh, recipe.mesh.rule)
    objective, frozen = make_objective(recipe, inputs, mesh)
    frozen_shardings = infer_shardings(frozen, mesh)
    step = make_train_step(
        _make_gradient(recipe, objective, mesh),
        optimizer,
        ema_decay=recipe.ema_decay,
        accumulate=recipe.optim.accumulate,
        spike=recipe.guard.spike,
    )
    return Program(
        mesh=mesh,
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(shardings, frozen_shardings, batch_sharding(mesh), None),
            out_shardings=(shardings, replicated(mesh)),
        ),
        abstract_state=with_shardings(abstract, shardings),
        abstract_frozen=with_shardings(jax.eval_shape(lambda tree: tree, frozen), frozen_shardings),
        frozen=frozen,
    )


def _make_gradient(recipe: Recipe, objective: Objective, mesh: Mesh) -> Gradient:
    """The plain gradient, or SAM's with one perturbation a device."""
    if not recipe.optim.sam_rho:
        return jax.value_and_grad(objective, has_aux=True)
    ascent = objective
    # Each device compares its own pairs to find its perturbation, and then all pairs.
    if isinstance(recipe, CLIPRecipe):
        ascent = make_clip_objective(recipe)
        objective = make_clip_objective(recipe, axes=mesh.axis_names)
    elif isinstance(recipe, NoisedCLIPRecipe):
        ascent = make_noised_clip_objective(recipe)
        objective = make_noised_clip_objective(recipe, axes=mesh.axis_names)
    return make_sam_gradient(objective, recipe.optim.sam_rho, ascent=ascent, mesh=mesh)
