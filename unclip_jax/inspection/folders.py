"""Folders of this package: runs, checkpoints, exported stages, models, stores of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unclip_jax.bounded import parse_json, read_json
from unclip_jax.config import to_dict
from unclip_jax.data.embedding_manifest import read_manifest as read_store
from unclip_jax.data.embedding_manifest import shard_path
from unclip_jax.errors import UserError
from unclip_jax.generation.model_folder import STAGES, read_sampling
from unclip_jax.inspection.findings import Finding, Leaf
from unclip_jax.inspection.tensors import described_leaves, find_not_finite, leaves_of, sha256
from unclip_jax.interop.safetensors_file import open_safetensors
from unclip_jax.training.manifest import Manifest, find_damage, find_missing, saved_steps
from unclip_jax.training.manifest import read_manifest as read_checkpoint
from unclip_jax.training.recipe import recipe_from_json
from unclip_jax.training.weights import load_stage

_TAIL = 100_000
"""Bytes at the end of metrics.jsonl that are read."""


def look_at_run(folder: Path, verify: bool) -> Finding:
    """A run folder: its recipe, its checkpoints with their checksums, its last metrics."""
    config, problems = _config(folder)
    facts = _recipe_facts(config, problems)
    last = _last_line(folder / "metrics.jsonl")
    if last:
        facts["last metrics"] = {key: value for key, value in last.items() if value is not None}
    steps = sorted(saved_steps(folder / "checkpoints"))
    facts["checkpoints"] = len(steps)
    parts: dict[str, Finding] = {}
    leaves: dict[str, Leaf] = {}
    for step in steps:
        part = look_at_checkpoint(folder / "checkpoints" / str(step), verify)
        parts[f"checkpoint {step}"] = part
        leaves = dict(part.leaves) or leaves
    averaged = {
        name.removeprefix("ema_params/"): leaf
        for name, leaf in leaves.items()
        if name.startswith("ema_params/")
    }
    return Finding("run", facts, averaged or leaves, tuple(problems), parts)


def look_at_checkpoint(folder: Path, verify: bool) -> Finding:
    """One checkpoint: is every file what its manifest says?"""
    manifest = read_checkpoint(folder)
    if not isinstance(manifest, Manifest):
        return Finding("checkpoint", {"step": folder.name}, problems=(f"not good: {manifest}",))
    damage = find_missing(folder, manifest)
    if damage is None and verify:
        damage = find_damage(folder, manifest)
    checked = "SHA-256 of every file" if verify else "sizes of its files; --verify reads them"
    facts: dict[str, Any] = {
        "step": folder.name,
        "state": "damaged" if damage else f"good ({checked})",
        "loss": None if manifest.loss is None else round(manifest.loss, 6),
        "bytes": sum(size for size, _ in manifest.files.values()),
    }
    problems = () if damage is None else (f"damaged: {damage}",)
    return Finding("checkpoint", facts, described_leaves(manifest.leaves), problems)


def look_at_stage(folder: Path, verify: bool) -> Finding:
    """An exported stage.

    Args:
        verify: read its weights as a model does, and look at every number.
    """
    config, problems = _config(folder)
    facts = {"format": config.get("format"), **_recipe_facts(config, problems)}
    leaves: dict[str, Leaf] = {}
    path = folder / "model.safetensors"
    try:
        tensors = open_safetensors(path)
        leaves = leaves_of(tensors)
        if verify:
            problems += find_not_finite(tensors)
            load_stage(folder, as_stored=True)
            facts["sha256"] = sha256(path)
    except UserError as error:
        problems.append(str(error))
    return Finding("exported stage", facts, leaves, tuple(dict.fromkeys(problems)))


def look_at_model(folder: Path, verify: bool) -> Finding:
    """A model: a folder for each stage, and how it is sampled."""
    parts = {}
    for name in (name for name in STAGES if (folder / name / "config.json").is_file()):
        stage = folder / name
        look = look_at_run if (stage / "checkpoints").is_dir() else look_at_stage
        parts[name] = look(stage, verify)
    problems = []
    clips = {
        str(part.facts["clip"])
        for part in parts.values()
        if part.facts.get("stage") in _FOR_A_CLIP and "clip" in part.facts
    }
    if len(clips) > 1:
        problems.append(f"its stages were trained for several CLIPs: {', '.join(sorted(clips))}")
    try:
        sampling = to_dict(read_sampling(folder))
    except UserError as error:
        problems.append(str(error))
        sampling = None
    facts: dict[str, Any] = {"stages": list(parts), "sampling": sampling}
    return Finding("model", facts, problems=tuple(problems), parts=parts)


def look_at_store(folder: Path, verify: bool) -> Finding:
    """A store of embeddings, `unclip embed`."""
    manifest = read_store(folder)
    assert manifest is not None
    facts = {**to_dict(manifest.made_of), "finished": manifest.finished}
    facts["shards"] = len(manifest.shards)
    facts["captions"] = sum(entry.captions for entry in manifest.shards)
    facts["unreadable"] = sum(entry.unreadable for entry in manifest.shards)
    facts["bytes"] = sum(entry.bytes for entry in manifest.shards)
    problems = []
    for number, entry in enumerate(manifest.shards):
        path = shard_path(folder, number)
        if not path.is_file():
            problems.append(f"{path.name} is missing")
        elif path.stat().st_size != entry.bytes:
            problems.append(f"{path.name} has {path.stat().st_size} bytes instead of {entry.bytes}")
        elif verify and sha256(path) != entry.sha256:
            problems.append(f"{path.name} has changed since it was written")
    if not manifest.finished:
        problems.append("it is not finished: run the same `unclip embed` again")
    facts["state"] = "damaged" if problems else "good (SHA-256)" if verify else "good (sizes)"
    return Finding("store of embeddings", facts, problems=tuple(problems))


def _config(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """config.json, and what is wrong with it."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        return {}, [f"config.json cannot be read ({error})"]
    return (config, []) if isinstance(config, dict) else ({}, ["config.json is no object"])


def _recipe_facts(config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Step, CLIP and recipe; a recipe that this version does not read is added to `problems`."""
    recipe = config.get("recipe")
    stage = recipe.get("stage") if isinstance(recipe, dict) else None
    try:
        recipe_from_json(recipe if isinstance(recipe, dict) else {})
    except UserError as error:
        problems.append(f"config.json: {error}")
    facts: dict[str, Any] = {"stage": stage}
    facts |= {name: config[name] for name in ("step", "clip") if config.get(name) is not None}
    return {**facts, "recipe": recipe}


_FOR_A_CLIP = ("clip", "prior", "ar_prior", "linear_prior", "one_step_prior", "decoder")


def _last_line(path: Path) -> dict[str, Any] | None:
    """The last whole object of a file of JSON lines."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            found = parse_json(line)
        except ValueError:  # the first of the piece, or one that is being written
            continue
        if isinstance(found, dict):
            return found
    return None
