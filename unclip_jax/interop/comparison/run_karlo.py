"""`unclip compare karlo`: the reference recorded or read, and ours beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.diffusion.sampler_config import SamplerConfig
from unclip_jax.errors import UserError
from unclip_jax.generation.guided import make_chain
from unclip_jax.interop.comparison.karlo import compare_karlo
from unclip_jax.interop.comparison.karlo_reference import record_karlo
from unclip_jax.interop.comparison.rows import (
    Row,
    changed_tensors,
    weights_note,
    weights_rows,
)
from unclip_jax.interop.comparison.trace import Trace, digests, load_trace, save_trace
from unclip_jax.interop.foreign_stage import ForeignModel
from unclip_jax.interop.karlo.diffusers_folder import open_diffusers_folder
from unclip_jax.interop.open_file import open_file
from unclip_jax.training.weights import Stage, load_stage


def run_karlo(
    folder: Path,
    model_folder: Path | None,
    prompts: Sequence[str],
    steps: Sequence[int],
    *,
    record: Path | None,
    trace: Path | None,
    seed: int,
    progress: Callable[[str], None],
) -> tuple[list[Row], list[str], list[np.ndarray]]:
    """Rows, remarks, and the pictures of both sides.

    Args:
        folder: diffusers' layout.
        model_folder: ours, as `unclip convert` wrote it with diffusers' coefficients or not; None
            reads `folder`.
    """
    if not (folder / "text_encoder").is_dir():
        raise UserError(
            f"{folder} has no text_encoder/: compare runs diffusers' components, name a folder of "
            "its layout"
        )
    model = open_diffusers_folder(folder, "diffusers")
    recorded = None if trace is None else load_trace(trace, "karlo")
    load = _checked(model, model_folder, steps if recorded is None else recorded.facts["steps"])
    if model_folder is not None:
        model = replace(model, clip=load("clip"))
    notes: list[str] = []
    rows: list[Row] = []
    if recorded is not None:
        rows, notes = _weights(folder, recorded)
    else:
        assert model.clip.tokenizer is not None
        recorded = record_karlo(folder, model.clip.tokenizer, prompts, steps, seed, progress)
        if record is not None:
            save_trace(recorded, record)
            notes.append(f"recorded in {record} ({record.stat().st_size / 1e6:.1f} MB)")
    ours: dict[str, np.ndarray] = {}
    rows = [*compare_karlo(model, recorded, load, ours), *rows]
    last = list(ours)[-1:]
    return rows, notes, [side[name] for name in last for side in (recorded.arrays, ours)]


def _checked(
    model: ForeignModel, folder: Path | None, steps: Sequence[int]
) -> Callable[[str], Stage]:
    """What loads a stage of ours, after all that can be known to be wrong was looked for: the
    reference takes long."""
    for name, number in zip(("prior", "decoder", "upsampler_256"), steps, strict=True):
        stage = model.stages.get(name)
        if stage is not None:
            recipe: Any = stage.recipe
            make_chain(recipe.diffusion, SamplerConfig(num_steps=number))
    if folder is None:
        for stage in model.stages.values():
            stage.check()
        return lambda name: model.stages[name].load(None, model.clip.clip_id)
    for name in ("clip", *model.stages):
        if not (folder / name / "config.json").is_file():
            raise UserError(f"{folder} has no {name}: name a folder that `unclip convert` wrote")

    def load(name: str) -> Stage:
        stage = load_stage(folder / name)
        recipe: Any = stage.recipe
        if name == "clip":
            return stage
        # The sampler's arithmetic is the trace's, whatever the folder was converted with.
        diffusion = replace(recipe.diffusion, tables="float32")
        return replace(stage, recipe=replace(recipe, diffusion=diffusion))

    return load


def _weights(folder: Path, trace: Trace) -> tuple[list[Row], list[str]]:
    """Tensor by tensor, whether the folder holds what the trace was recorded with."""
    rows, notes = [], []
    for component, recorded in trace.facts["digests"].items():
        if not (folder / component).is_dir():
            raise UserError(
                f"{folder} has no {component}, which the trace was recorded with: record it again"
            )
        tensors = open_file(folder / component).tensors
        changed = changed_tensors(digests(tensors), recorded)
        rows += weights_rows(changed, len(recorded), component)
        notes.append(weights_note(changed, len(recorded), component))
    return rows, notes
