"""`unclip compare karlo`: the reference recorded or read, and ours beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.generation.model_folder import read_sampling
from unclip_jax.interop.comparison.karlo import compare_karlo
from unclip_jax.interop.comparison.karlo_reference import record_karlo
from unclip_jax.interop.comparison.rows import Row, changed_tensors
from unclip_jax.interop.comparison.trace import Trace, digests, load_trace, save_trace
from unclip_jax.interop.foreign_stage import ForeignModel
from unclip_jax.interop.karlo.diffusers_folder import open_diffusers_folder
from unclip_jax.interop.open_file import open_file
from unclip_jax.training.weights import Stage, load_stage


def run_karlo(
    folder: Path,
    model_folder: Path | None,
    prompts: Sequence[str],
    steps: tuple[int, int, int],
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
    notes: list[str] = []
    if trace is not None:
        recorded = load_trace(trace, "karlo")
        notes += _weights(folder, recorded)
    else:
        assert model.clip.tokenizer is not None
        recorded = record_karlo(folder, model.clip.tokenizer, prompts, steps, seed, progress)
        if record is not None:
            save_trace(recorded, record)
            notes.append(f"recorded in {record} ({record.stat().st_size / 1e6:.1f} MB)")
    ours: dict[str, np.ndarray] = {}
    rows = list(compare_karlo(model, recorded, _loader(model, model_folder), ours))
    last = list(ours)[-1:]
    return rows, notes, [side[name] for name in last for side in (recorded.arrays, ours)]


def _loader(model: ForeignModel, folder: Path | None) -> Callable[[str], Stage]:
    if folder is None:
        return lambda name: model.stages[name].load(None, model.clip.clip_id)
    read_sampling(folder)  # says what is wrong with the folder, if something is

    def load(name: str) -> Stage:
        stage = load_stage(folder / name)
        # The sampler's arithmetic is the trace's, whatever the folder was converted with.
        return replace(stage, recipe=model.stages[name].recipe)

    return load


def _weights(folder: Path, trace: Trace) -> list[str]:
    """Tensor by tensor, whether the folder holds what the trace was recorded with."""
    notes = []
    for component, recorded in trace.facts["digests"].items():
        if not (folder / component).is_dir():
            notes.append(f"weights: {component} is in the trace, not in {folder}")
            continue
        changed = changed_tensors(digests(open_file(folder / component).tensors), recorded)
        if changed:
            shown = ", ".join(changed[:4]) + (", ..." if changed[4:] else "")
            notes.append(
                f"weights: {len(changed)} of {len(recorded)} tensors of {component} are not those "
                f"of the trace: {shown}"
            )
    if not notes:
        count = sum(len(names) for names in trace.facts["digests"].values())
        notes.append(f"weights: all {count} tensors are those of the trace, bit for bit")
    return notes
