"""Toy stages on one device and on meshes of eight: python -m tests.training.sharded_run FOLDER

A process of its own, because the number of devices is fixed when JAX starts: JAX_NUM_CPU_DEVICES=8.
FOLDER holds the pictures and the CLIP. Prints one JSON object with the metrics of every run, what
restoring gave and where the arrays lie.

One device is here a mesh of the first of the eight. Every placement starts from the same weights,
reads the same batches and runs the program that `train()` runs; without its files and previews.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tests.training import toys
from unclip_jax.cli.overrides import load_recipe
from unclip_jax.config import CheckpointConfig, MeshConfig
from unclip_jax.data.bad_records import BadRecords
from unclip_jax.training import sharding
from unclip_jax.training.checkpoint import Checkpoints
from unclip_jax.training.inputs import Inputs, open_batches, open_inputs
from unclip_jax.training.optim import make_optimizer
from unclip_jax.training.processes import place_rows
from unclip_jax.training.program import Program, make_program
from unclip_jax.training.recipe import STAGES, recipe_to_json
from unclip_jax.training.stages import init_params
from unclip_jax.training.state import init_state

MESHES = {
    "1x1": MeshConfig(data=1, fsdp=1),
    "8x1": MeshConfig(data=8, fsdp=1),
    "4x2": MeshConfig(data=4, fsdp=2),
    "1x8": MeshConfig(data=1, fsdp=8),
    "zero1": MeshConfig(data=1, fsdp=8, rule="zero1"),
}
EVERYWHERE = ("clip", "prior", "decoder")
"""Stages that train on all of these: a contrast over all rows, a transformer, convolutions. The
others train on one device and where rows and weights are split: compiling is the cost here."""
STEPS = 20
# The paper's for CLIP. At the toys' 1e-3 a CLIP of 20 steps is already so unsteady that rounding
# alone moves its gradient by 4e-5, and its loss by 5e-6.
OPTIM = {"learning_rate": 3e-4, "eps": 1e-6}
DALLE2 = Path(__file__).parents[2] / "configs" / "dalle2"
Rows = list[dict[str, float]]


def meshes_of(stage: str) -> tuple[str, ...]:
    """Names of the meshes that a stage trains on."""
    return tuple(MESHES) if stage in EVERYWHERE else ("1x1", "4x2")


class Model:
    """A toy stage with its first batches, and its program on every mesh that is its own."""

    def __init__(self, stage: str, folder: Path) -> None:
        model = {}
        if stage == "decoder":  # attention only in the middle: half the time
            small = toys.SMALL_DECODER["unet"]
            unet = replace(small, attention_resolutions=(), dropout=0.1)
            model = {"unet": unet}
        self.recipe = toys.on_folder(stage, folder, STEPS, model=model, optim=OPTIM)
        self.inputs: Inputs = open_inputs(self.recipe, folder / "new")
        batches = open_batches(self.recipe, self.inputs, BadRecords(), 0)
        self.batches = [next(batches) for _ in range(STEPS + 1)]
        self.programs = {name: self._program(MESHES[name]) for name in meshes_of(stage)}
        self.key, init_key = jax.device_get(jax.random.split(jax.random.key(0)))
        self.first = jax.device_get(self.programs["1x1"].init(init_key))

    def _program(self, config: MeshConfig) -> Program:
        mesh = sharding.make_mesh(config, jax.devices()[: config.data * config.fsdp])
        return make_program(replace(self.recipe, mesh=config), self.inputs, mesh)

    def place(self, name: str, state: Any) -> Any:
        shapes = self.programs[name].abstract_state
        return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, shapes))

    def run(self, name: str, state: Any, batches: list[Any]) -> tuple[Any, Rows]:
        """The state after a step on each of `batches`, and their metrics."""
        program, rows = self.programs[name], []
        frozen = program.place_frozen()
        key = jax.device_put(self.key, sharding.replicated(program.mesh))
        with jax.set_mesh(program.mesh), jax.transfer_guard("disallow"):
            for batch in batches:
                state, metrics = program.step(state, frozen, place_rows(batch, program.mesh), key)
                rows.append({k: float(v) for k, v in jax.device_get(metrics).items()})
        return state, rows


def train_everywhere(model: Model) -> tuple[dict[str, Any], dict[str, Rows]]:
    """State and metrics after STEPS steps on every mesh of the stage."""
    states, rows = {}, {}
    for name in model.programs:
        start = model.place(name, model.first)
        states[name], rows[name] = model.run(name, start, model.batches[:STEPS])
    return states, rows


def restore_everywhere(model: Model, states: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A checkpoint of each mesh on each other: are all arrays the same bits, and the next loss."""
    found: dict[str, Any] = {}
    for source, state in states.items():
        checkpoints = Checkpoints(folder / source, CheckpointConfig(), state)
        checkpoints.save(STEPS, state, recipe_to_json(model.recipe), None)
        checkpoints.wait(must_succeed=True)
        saved = jax.device_get(state)
        found[source] = {}
        for target in MESHES:
            state = checkpoints.restore_newest(model.programs[target].abstract_state)
            same = jax.tree.map(np.array_equal, saved, jax.device_get(state))
            _, rows = model.run(target, state, model.batches[STEPS:])
            found[source][target] = {"same": all(jax.tree.leaves(same)), **rows[0]}
        checkpoints.close()
    return found


def init_everywhere(model: Model) -> dict[str, bool]:
    """Whether initialisation straight into the shards of a mesh gives one device's weights."""
    _, init_key = jax.random.split(jax.random.key(0))
    found = {}
    for name in ("4x2", "zero1"):
        state = jax.device_get(model.programs[name].init(jax.device_get(init_key)))
        close = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-6), state, model.first)
        found[name] = all(jax.tree.leaves(close))
    return found


def split_parts(program: Program) -> dict[str, list[str]]:
    """Which parts of a state have arrays that are whole, and which that are split."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state)
    rows = sharding.placements(program.abstract_state, shardings)
    return {
        "whole": sorted({row.part for row in rows if row.spec == PartitionSpec()}),
        "split": sorted({row.part for row in rows if row.spec != PartitionSpec()}),
    }


def placement_of_the_paper(path: Path) -> dict[str, Any]:
    """How the state of a recipe of the paper would lie on the mesh (1, 8); nothing is allocated."""
    recipe = load_recipe(str(path))
    optimizer = make_optimizer(recipe.optim, recipe.steps)
    state = jax.eval_shape(
        lambda key: init_state(init_params(recipe, key), optimizer), jax.random.key(0)
    )
    placed = sharding.infer_shardings(state, sharding.make_mesh(MeshConfig(data=1, fsdp=8)))
    leaves = list(zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True))
    sizes = {True: [0], False: [0]}
    for leaf, where in leaves:
        sizes[where.spec == PartitionSpec()].append(leaf.size * leaf.dtype.itemsize)
    same = jax.tree.map(
        lambda *specs: len({s.spec for s in specs}) == 1, placed.params, placed.ema_params
    )
    return {
        "every_leaf": all(isinstance(where, NamedSharding) for _, where in leaves),
        "largest_whole": max(sizes[True]),
        "share_split": sum(sizes[False]) / sum(sizes[False] + sizes[True]),
        "average_as_weights": all(jax.tree.leaves(same)),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    found: dict[str, Any] = {
        "paper": {path.stem: placement_of_the_paper(path) for path in sorted(DALLE2.glob("*.py"))}
    }
    sharding.SMALLEST_SHARDED = 64  # the toys' arrays are small: split them all the same
    found["rows"] = {}
    for stage in STAGES:
        model = Model(stage, folder)
        states, found["rows"][stage] = train_everywhere(model)
        if stage == "clip":
            found["restored"] = restore_everywhere(model, states, folder / "checkpoints")
            found["init"] = init_everywhere(model)
            found["parts"] = {name: split_parts(p) for name, p in model.programs.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
