"""What a path holds, found out by what is in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unclip_jax.bounded import read_json
from unclip_jax.data.picture_manifest import GRID
from unclip_jax.errors import UserError, nearest
from unclip_jax.files import missing
from unclip_jax.inspection.findings import Finding
from unclip_jax.inspection.pictures import look_at_picture, picture_format

_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".th")
_SHIPPED = ("emoji",)
_MOST_ENTRIES = 1_000_000


def look_at(name: str, *, verify: bool = False, run: Callable[[str], Any] | None = None) -> Finding:
    """What is there. Nothing of it is executed unless `run` is given.

    Args:
        name: a file, a folder, or a shipped model.
        verify: read everything and compare it with its checksums.
        run: executes a recipe's file and returns its `config`.
    Raises:
        UserError: nothing there, or nothing that is known here.
    """
    path = Path(name).expanduser()
    if not path.exists() and name in _SHIPPED:
        from unclip_jax.training.weights import shipped_model

        path = shipped_model(name) or path
    if not path.exists():
        meant = nearest(name, _SHIPPED)
        raise UserError(f"{path} {missing(path)}" + (f" Or model {meant}?" if meant else ""))
    if path.is_dir():
        return _folder(path, verify)
    if not path.is_file():
        raise UserError(f"{path} is no regular file: name a file or a folder")
    return _file(path, verify, run)


def _file(path: Path, verify: bool, run: Callable[[str], Any] | None) -> Finding:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its rights") from error
    if not start:
        raise UserError(f"{path} is empty: restore the file")
    if picture_format(start):
        return look_at_picture(path, verify)
    if path.suffix in (".json", ".jsonl", ".py") and not path.name.endswith(".index.json"):
        from unclip_jax.inspection import texts

        if path.suffix == ".py":
            return texts.look_at_recipe(path, None if run is None else run(str(path)))
        return texts.look_at_json(path) if path.suffix == ".json" else texts.look_at_lines(path)
    if path.suffix == ".tar":
        return _tar(path)
    from unclip_jax.inspection.tensors import look_at_weights

    if path.suffix in _WEIGHTS or start.startswith(b"PK\3\4") or start[8:9] == b"{":
        return look_at_weights(path, verify)
    if path.name.endswith(".index.json"):
        return look_at_weights(path, verify)
    raise UserError(
        f"{path} is nothing that is known here (it begins with {start[:8].hex(' ')}): name weights "
        "(safetensors, .pt), a run, a model, embeddings, a picture, a recipe, .json, .jsonl or .tar"
    )


def _tar(path: Path) -> Finding:
    """A shard of captioned pictures, from its headers."""
    from unclip_jax.data.tar_members import TarMembers

    counts: Counter[str] = Counter()
    samples: set[str] = set()
    with path.open("rb") as file:
        members = TarMembers(file)
        for member, _ in members:
            stem, _, ending = member.rpartition("/")[2].partition(".")
            counts[f".{ending}"] += 1
            samples.add(member[: len(member) - len(ending)] or stem)
    facts = {"samples": len(samples), "holds": dict(counts.most_common(20))}
    problems = ("it is cut off, or no tar archive",) if members.is_cut else ()
    return Finding("tar shard", {**facts, "bytes": path.stat().st_size}, problems=problems)


def _folder(path: Path, verify: bool) -> Finding:
    """By the files that only one kind has."""
    if (path / "config.json").is_file() and _has_recipe(path):
        from unclip_jax.inspection import folders

        is_exported = (path / "model.safetensors").is_file()
        return (folders.look_at_stage if is_exported else folders.look_at_run)(path, verify)
    if (path / "clip" / "config.json").is_file() and _has_recipe(path / "clip"):
        from unclip_jax.inspection.folders import look_at_model

        return look_at_model(path, verify)
    if (path / "manifest.json").is_file():
        from unclip_jax.inspection import folders

        keys = _keys(path / "manifest.json")
        if {"leaves", "files"} <= keys:
            return folders.look_at_checkpoint(path, verify)
        if {"made_of", "finished"} <= keys:
            return folders.look_at_store(path, verify)
    if (path / "index.json").is_file() and "clip_id" in _keys(path / "index.json"):
        from unclip_jax.inspection.indexes import look_at_index

        return look_at_index(path, verify)
    from unclip_jax.inspection.tensors import content_of, has_weights, look_at_weights

    if has_weights(path):
        return look_at_weights(path, verify)
    return _any_folder(path, content_of(path))


def _any_folder(path: Path, content: str) -> Finding:
    """How many files of which kind, and what the first picture says."""
    counts: Counter[str] = Counter()
    size, first = 0, None
    with os.scandir(path) as entries:
        for number, entry in enumerate(entries):
            if number >= _MOST_ENTRIES:
                break
            if entry.is_dir():
                counts["folders"] += 1
                continue
            suffix = Path(entry.name).suffix.lower()
            counts[suffix or "without an ending"] += 1
            size += entry.stat(follow_symlinks=False).st_size
            if suffix == ".png" and entry.name != GRID:
                first = min(first or entry.name, entry.name)
    if not counts:
        raise UserError(f"{path} is empty: name a file, or a folder with something in it")
    facts: dict[str, Any] = {"content": content, "holds": dict(counts.most_common(20))}
    facts["bytes"] = size
    parts = {}
    if first is not None:
        picture = look_at_picture(path / first, verify=False)
        facts["first picture"] = {"file": first, "origin": picture.facts["origin"]}
    return Finding("folder", facts, parts=parts)


def _has_recipe(folder: Path) -> bool:
    return "recipe" in _keys(folder / "config.json")


def _keys(path: Path) -> set[str]:
    """Of a file's JSON object; none if it cannot be read."""
    try:
        found = read_json(path, 256_000_000)
    except (OSError, ValueError):
        return set()
    return set(found) if isinstance(found, dict) else set()
