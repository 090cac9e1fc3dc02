"""A stage's sampling compiled for devices that are not there: whether it fits, how fast it can be.

The program is the one that `UnCLIP` runs, and every device runs it for rows of its own: nothing
crosses the network. Memory is the compiler's word, and times are floors, as in
`training/planning/plan.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unclip_jax.data.tokenizer import clip_tokenizer
from unclip_jax.errors import UserError
from unclip_jax.generation.inpainting import TRAINED, inpaint_program
from unclip_jax.generation.model_folder import STAGES
from unclip_jax.generation.programs import (
    PRIORS,
    Find,
    decoder_program,
    image_program,
    prior_program,
    text_program,
    upsampler_program,
)
from unclip_jax.generation.rows import RowProgram, trace_rows
from unclip_jax.generation.sampling import SamplingConfig
from unclip_jax.training.embedding_statistics import EmbeddingStatistics
from unclip_jax.training.planning.abstract_inputs import abstract_codes
from unclip_jax.training.planning.chips import Chip, chip_of, topology_devices
from unclip_jax.training.planning.compiled import ProgramText, read_program
from unclip_jax.training.planning.compiling import DoesNotFitError, compile_for_chips
from unclip_jax.training.planning.flops import forward_flops
from unclip_jax.training.planning.plan_text import dollar_text, size_text, time_text
from unclip_jax.training.recipe import ON_CLIP, Recipe
from unclip_jax.training.recipes.ar_prior import ARPriorRecipe
from unclip_jax.training.recipes.clip import CLIPRecipe
from unclip_jax.training.recipes.decoder import DecoderRecipe
from unclip_jax.training.recipes.prior import PriorRecipe
from unclip_jax.training.recipes.upsampler import UpsamplerRecipe
from unclip_jax.training.stages import init_params
from unclip_jax.training.weights import Stage, exported_shapes


@dataclass(frozen=True)
class SamplingPlan:
    """What one micro-batch of a stage costs on every device of a topology."""

    name: str
    topology: str
    chip: Chip
    devices: int
    rows: int
    """Of a device and micro-batch."""
    weights: int
    """Bytes on every device: of the stage and of the CLIP that it reads, kernels as exported."""
    weights_read: int
    """Bytes of weights that a micro-batch reads at least: once, and for every code of an
    autoregressive prior, which draws one after the other."""
    temporaries: int
    others: int
    """Bytes of rows, results and code."""
    flops: int
    """Of a device and micro-batch."""
    program: ProgramText
    compile_seconds: float
    is_quick: bool

    @property
    def total(self) -> int:
        """Bytes of a device."""
        return self.weights + self.temporaries + self.others

    @property
    def compute_floor(self) -> float:
        """Seconds a micro-batch if only the products took time."""
        return self.flops / self.chip.flops

    @property
    def memory_floor(self) -> float:
        """Seconds a micro-batch if only reading and writing HBM took time."""
        return self.program.bytes_moved / self.chip.memory_bandwidth

    @property
    def floor(self) -> float:
        """Seconds a micro-batch. A quick program is hardly fused: its bytes are no floor."""
        floor = max(self.compute_floor, self.weights_read / self.chip.memory_bandwidth)
        return floor if self.is_quick else max(floor, self.memory_floor)

    @property
    def rows_per_second(self) -> float:
        """Of all devices, at the floor."""
        return self.rows * self.devices / self.floor

    @property
    def dollars_per_million(self) -> float:
        """For a million rows at the floor."""
        return 1e6 / self.rows_per_second / 3600 * self.devices * self.chip.dollars_per_hour


def sampling_programs(
    recipe: Recipe, clip: CLIPRecipe | None, how: SamplingConfig
) -> Iterator[tuple[RowProgram, dict[str, Any], dict[str, Any]]]:
    """The row programs of a recipe's stage, with the shapes of parameters and of one row.

    Args:
        clip: recipe of the CLIP that a prior or a decoder reads; None for a stage without one.
    Raises:
        UserError: a stage from which nothing is sampled, or one without its CLIP.
    """
    if isinstance(recipe, CLIPRecipe):
        clip = recipe
    elif isinstance(recipe, ON_CLIP) and clip is None:
        raise UserError(
            f"{recipe.clip} is not here, and the program holds its CLIP: name its recipe with "
            "--clip-recipe configs/dalle2/clip.py"
        )
    stages = {} if clip is None else {"clip": _stage(clip, clip)}
    find: Find = stages.__getitem__
    keys = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    rows: dict[str, Any] = {"keys": keys}
    if clip is not None:
        rows["tokens"] = jax.ShapeDtypeStruct((clip.model.context_length,), jnp.int32)

    def found(program: RowProgram, **own: Any) -> Any:
        return program, {name: stages[name].params for name in program.stages}, {**rows, **own}

    if isinstance(recipe, CLIPRecipe):
        side = recipe.model.image_size
        yield found(text_program(find))
        yield found(image_program(find), image=jax.ShapeDtypeStruct((side, side, 3), jnp.uint8))
    elif prior := _prior_name(recipe):
        stages[PRIORS[prior]] = _stage(recipe, clip)
        yield found(prior_program(find, how, prior))
    elif isinstance(recipe, DecoderRecipe):
        name = TRAINED if recipe.model.is_inpainting else "decoder"
        stages[name] = _stage(recipe, clip)
        width = recipe.model.embedding_width
        own = {} if width is None else {"embedding": jax.ShapeDtypeStruct((width,), jnp.float32)}
        if how.decoder.guidance_scale != 1:
            own["guidance"] = jax.ShapeDtypeStruct((), jnp.float32)
        if name == "decoder":
            yield found(decoder_program(find, how), **own)
            return
        side = recipe.model.unet.image_size
        own["image"] = jax.ShapeDtypeStruct((side, side, 3), jnp.uint8)
        own["keep"] = jax.ShapeDtypeStruct((side, side, 1), jnp.bool_)
        yield found(inpaint_program(find, how, None), **own)
    elif isinstance(recipe, UpsamplerRecipe):
        size = 256 if recipe.data.image_size <= 256 else 1024
        stages[f"upsampler_{size}"] = _stage(recipe, clip)
        side = recipe.data.image_size // 4
        image = jax.ShapeDtypeStruct((side, side, 3), jnp.float32)
        yield found(upsampler_program(find, how, size, has_last=False), image=image)
    else:
        raise UserError(
            f"nothing is sampled from a {type(recipe).__name__} alone: plan its training, or "
            "the decoder that it steers"
        )


def make_sampling_plans(
    recipe: Recipe,
    clip: CLIPRecipe | None,
    how: SamplingConfig,
    topology: str,
    *,
    is_quick: bool = True,
) -> list[SamplingPlan]:
    """Compile the row programs of a recipe's stage for every device of `topology`.

    Raises:
        DoesNotFitError: the chip's memory is too small.
        UserError: see `sampling_programs`, or a topology that there is not.
    """
    chip, devices = chip_of(topology), topology_devices(topology, 1)
    mesh = Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("rows",)))
    plans = []
    for program, params, row in sampling_programs(recipe, clip, how):
        rows = _rows(row, how.batch_size * len(devices), split)
        placed = jax.tree.map(lambda leaf: _shape(leaf, leaf.shape, whole), params)
        began = time.monotonic()
        lowered = trace_rows(program, mesh, placed, rows).lower(lowering_platforms=("tpu",))
        compiled, text = compile_for_chips(lowered, is_quick=is_quick)
        memory = compiled.memory_analysis()
        weights = again = _bytes(params)
        if isinstance(recipe, ARPriorRecipe):
            again += (recipe.model.components - 1) * _bytes(params["ar_prior"]["transformer"])
        plans.append(
            SamplingPlan(
                name=program.name,
                topology=topology,
                chip=chip,
                devices=len(devices),
                rows=how.batch_size,
                weights=weights,
                weights_read=again,
                temporaries=memory.temp_size_in_bytes,
                others=memory.output_size_in_bytes + memory.generated_code_size_in_bytes,
                flops=forward_flops(program.run, params, _rows(row, how.batch_size)),
                program=read_program(text, len(devices)),
                compile_seconds=time.monotonic() - began,
                is_quick=is_quick,
            )
        )
    return plans


def find_smaller(
    recipe: Recipe,
    clip: CLIPRecipe | None,
    how: SamplingConfig,
    topology: str,
    say: Callable[[str], None],
) -> tuple[str, list[SamplingPlan]] | None:
    """The first change with which a stage that does not fit does, and its plans; None if none."""
    tries = [("batch_size", how.batch_size // 2**n) for n in range(1, 8) if how.batch_size >> n]
    if isinstance(recipe, UpsamplerRecipe):
        tries = [("upsample_batch_size", 1)] if how.upsample_batch_size > 1 else []
        tries += [("tile", side) for side in (512, 256, 128) if side < recipe.data.image_size]
    for name, value in tries:
        flag = f"--sampling.{name.replace('_', '-')} {value}"
        try:
            changed: Any = replace(how, **{name: value})
            return flag, make_sampling_plans(recipe, clip, changed, topology)
        except DoesNotFitError as error:
            say(f"with {flag}: {error}")
    return None


def sampling_plan_text(plan: SamplingPlan) -> str:
    """Memory, work, floors and cost, a figure a line."""
    chip, program = plan.chip, plan.program
    bound = "an upper bound, see --exact" if plan.is_quick else "as sampling compiles"
    lines = [
        (
            f"{plan.name} on {plan.topology}: {plan.rows} rows a device and micro-batch; "
            f"compiled in {plan.compile_seconds:.0f} s"
        ),
        f"memory of a device ({bound})",
        f"  weights        {size_text(plan.weights)}",
        f"  temporaries    {size_text(plan.temporaries)}",
        f"  rows, program  {size_text(plan.others)}",
        (
            f"  in all         {size_text(plan.total)} of {size_text(chip.memory)}: it fits, "
            f"{1 - plan.total / chip.memory:.0%} free"
        ),
        "work of a micro-batch on a device",
        f"  {plan.flops:.3e} FLOP, {plan.flops / plan.rows:.3e} a row",
        f"  {program.bytes_moved:.3e} bytes of HBM" + (", before fusion" if plan.is_quick else ""),
        f"  {len(program.collectives) or 'no'} kinds of transfers between devices",
        f"floors at the published rates of {chip.name}",
        (
            f"  compute {time_text(plan.compute_floor)}, HBM for weights alone "
            f"{time_text(plan.weights_read / chip.memory_bandwidth)}, for all "
            f"{time_text(plan.memory_floor)}"
        )
        + (" before fusion, left out" if plan.is_quick else ""),
        (
            f"  at most {plan.rows_per_second:,.1f} rows a second on {plan.devices} devices, "
            f"{dollar_text(plan.dollars_per_million)} dollars or more for a million, at "
            f"{chip.dollars_per_hour:.2f} a device and hour"
        ),
    ]
    return "\n".join(lines)


def _prior_name(recipe: Recipe) -> str | None:
    """How a call names the prior that this recipe trains; None for another stage."""
    found = [prior for prior, stage in PRIORS.items() if STAGES[stage] is type(recipe)]
    return found[0] if found else None


def _stage(recipe: Any, clip: CLIPRecipe | None) -> Stage:
    """The stage as shapes; what a prior was fitted with is zeros."""
    params = exported_shapes(jax.eval_shape(lambda: init_params(recipe, jax.random.key(0))))
    tokenizer = None if clip is None else clip_tokenizer(clip.model.context_length)
    codes = statistics = None
    if isinstance(recipe, ARPriorRecipe):
        codes = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_codes(recipe))
    if isinstance(recipe, PriorRecipe) and recipe.model.is_whitened:
        width = recipe.model.embedding_width
        statistics = EmbeddingStatistics(np.zeros(width, np.float32), np.ones(width, np.float32))
    return Stage(recipe, params, tokenizer, 0, "", codes, None, statistics)


def _rows(row: dict[str, Any], count: int, sharding: Any = None) -> dict[str, Any]:
    """`count` rows of these shapes, with `is_real`."""
    row = {**row, "is_real": jax.ShapeDtypeStruct((), jnp.bool)}
    return {name: _shape(leaf, (count, *leaf.shape), sharding) for name, leaf in row.items()}


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _shape(leaf: Any, shape: tuple[int, ...], sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
