"""A recipe compiled for devices that are not there: whether it fits, and how fast it can be.

The program is the one that training runs, compiled by the TPU's own compiler. What it needs of a
chip's memory is the compiler's word. Times are floors: each resource at its published rate, and
nothing else in the way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh

from unclip_jax.config import with_fields
from unclip_jax.errors import UserError
from unclip_jax.training.planning.abstract_inputs import abstract_batch, abstract_inputs
from unclip_jax.training.planning.chips import Chip, chip_of, topology_devices
from unclip_jax.training.planning.compiled import ProgramText, read_program
from unclip_jax.training.planning.compiling import DoesNotFitError, compile_for_chips
from unclip_jax.training.planning.work import step_flops
from unclip_jax.training.program import Program, make_program
from unclip_jax.training.recipe import Recipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.sharding import batch_sharding, make_mesh


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    parameters: int
    average: int
    """The EMA of the parameters."""
    optimizer: int
    frozen: int
    """The CLIP that is not trained."""
    batch: int
    gradients: int
    """As the optimiser gets them, part of `temporaries`."""
    temporaries: int
    """What the compiler adds for everything that lives only within a step."""
    code: int
    capacity: float

    @property
    def total(self) -> int:
        """Of everything that lives in a step."""
        state = self.parameters + self.average + self.optimizer
        return state + self.frozen + self.batch + self.temporaries + self.code


@dataclass(frozen=True)
class Plan:
    """What one training step costs on a topology."""

    topology: str
    slices: int
    mesh: dict[str, int]
    chip: Chip
    batch_size: int
    count: int
    """Trained parameters."""
    memory: Memory
    flops: int
    """Of the model and a whole step, over all devices (see `flops.training_flops`)."""
    program: ProgramText
    """Of one device."""
    compile_seconds: float
    is_quick: bool

    @property
    def compute_floor(self) -> float:
        """Seconds a step if only the products took time, recomputed ones included."""
        return max(self.program.flops, self.flops / self.devices) / self.chip.flops

    @property
    def memory_floor(self) -> float:
        """Seconds a step if only reading and writing HBM took time."""
        return self.program.bytes_moved / self.chip.memory_bandwidth

    @property
    def network_floor(self) -> float:
        """Seconds a step if only transfers took time, those inside a slice and between slices."""
        inside = across = 0.0
        for row in self.program.collectives:
            if row.is_across:
                across += row.received
            else:
                inside += row.received
        return inside / self.chip.link_bandwidth + across / self.chip.slice_bandwidth

    @property
    def step_floor(self) -> float:
        """Seconds a step if all of them overlap perfectly."""
        return self._floors[self.bound]

    @property
    def bound(self) -> str:
        """Which floor that is."""
        return max(self._floors, key=lambda name: self._floors[name])

    @property
    def _floors(self) -> dict[str, float]:
        floors = {"compute": self.compute_floor, "network": self.network_floor}
        # A quick program is hardly fused: what it reads and writes is no floor.
        return floors if self.is_quick else floors | {"memory": self.memory_floor}

    @property
    def mfu_ceiling(self) -> float:
        """Share of the peak that the model's own operations can reach."""
        return self.flops / self.devices / self.chip.flops / self.step_floor

    @property
    def devices(self) -> int:
        """In all slices."""
        return math.prod(self.mesh.values())

    @property
    def dollars_per_million(self) -> float:
        """For a million pictures at the floor."""
        hours = self.step_floor / self.batch_size * 1e6 / 3600
        return hours * self.devices * self.chip.dollars_per_hour


def make_plan(recipe: Recipe, clip: CLIPRecipe | None, *, is_quick: bool = True) -> Plan:
    """Compile the train step of `recipe` for `recipe.mesh.topology`.

    Args:
        clip: recipe of the frozen CLIP; None for a stage without one.
        is_quick: see `compile_for_chips`; as training compiles can take twenty minutes.
    Raises:
        DoesNotFitError: the chip's memory is too small.
        UserError: a topology, mesh or batch that do not go together.
    """
    topology, slices = recipe.mesh.topology, recipe.mesh.slices
    if topology is None:
        raise UserError("mesh.topology is not set: name the chips with --topology v5e:16x16")
    chip = chip_of(topology)
    mesh = make_mesh(recipe.mesh, topology_devices(topology, slices))
    inputs = abstract_inputs(recipe, clip)
    program = make_program(recipe, inputs, mesh)
    batch = abstract_batch(recipe, inputs, batch_sharding(mesh))
    began = time.monotonic()
    compiled, text = compile_for_chips(_lower(program, batch, mesh), is_quick=is_quick)
    seconds = time.monotonic() - began
    found = compiled.memory_analysis()
    state = program.abstract_state
    gradients = [_device_bytes(leaf) for leaf in jax.tree.leaves(state.params)]
    memory = Memory(
        parameters=sum(gradients),
        average=_tree_bytes(state.ema_params),
        optimizer=_tree_bytes(state.opt_state),
        frozen=_tree_bytes(program.abstract_frozen),
        batch=_tree_bytes(batch),
        gradients=sum(gradients),
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        capacity=chip.memory,
    )
    return Plan(
        topology=topology,
        slices=slices,
        mesh=dict(mesh.shape),
        chip=chip,
        batch_size=recipe.batch_size,
        count=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        memory=memory,
        flops=step_flops(recipe, inputs),
        program=read_program(text, mesh.size),
        compile_seconds=seconds,
        is_quick=is_quick,
    )


def remedies(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Changes that need less memory, the cheapest first: how to say them, and the recipe."""
    assert recipe.mesh.topology is not None
    devices = len(topology_devices(recipe.mesh.topology, recipe.mesh.slices))
    whole = devices // recipe.mesh.slices
    if recipe.mesh.fsdp < whole:
        mesh = replace(recipe.mesh, data=-1, fsdp=whole)
        recipe = replace(recipe, mesh=mesh)
        yield f"--mesh.fsdp {whole}", recipe
    remat: Any = with_fields(recipe, remat="block")
    if remat != recipe:
        recipe = remat
        yield "remat='block' in every network of the recipe", recipe
    accumulate = recipe.optim.accumulate
    while recipe.batch_size % (2 * accumulate * devices) == 0:
        accumulate *= 2
        recipe = replace(recipe, optim=replace(recipe.optim, accumulate=accumulate))
        yield f"--optim.accumulate {accumulate}", recipe
    if recipe.optim.mu_dtype != "bfloat16":
        recipe = replace(recipe, optim=replace(recipe.optim, mu_dtype="bfloat16"))
        yield "--optim.mu-dtype bfloat16", recipe


def find_remedy(
    recipe: Recipe, clip: CLIPRecipe | None, say: Callable[[str], None]
) -> tuple[list[str], Plan] | None:
    """The first changes, one added to the other, with which the recipe fits; None if none do."""
    changes: list[str] = []
    for change, changed in remedies(recipe):
        # A second number for the same field replaces the first.
        field = change.split()[0]
        changes = [c for c in changes if c.split()[0] != field] + [change]
        try:
            return changes, make_plan(changed, clip)
        except DoesNotFitError as error:
            say(f"with {', '.join(changes)}: {error}")
    return None


def _lower(program: Program, batch: Any, mesh: Mesh) -> Any:
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        return program.step.trace(  # pyright: ignore[reportFunctionMemberAccess]
            program.abstract_state, program.abstract_frozen, batch, key
        ).lower(lowering_platforms=("tpu",))


def _tree_bytes(tree: Any) -> int:
    return sum(_device_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _device_bytes(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
