"""The run folder's description of itself: what it holds, and whether a recipe may continue it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from unclip_jax.bounded import read_json
from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.errors import UserError
from unclip_jax.files import NotWritten, write_whole
from unclip_jax.training.recipe import Recipe, recipe_from_json, recipe_to_json

# What may change between two calls of the same run.
_FREE = {"steps", "log", "checkpoint", "guard", "mesh", "clip", "codes", "init_from"}
_FREE_DATA = {"threads", "cache_dir", "max_bad_fraction", "embeddings"}


def check_same_run(recipe: Recipe, workdir: Path) -> str | None:
    """The folder is empty, or holds a run of this very recipe; the id of that run's CLIP."""
    path = workdir / "config.json"
    try:
        config = read_json(path)
        saved = recipe_from_json(config["recipe"])
    except (FileNotFoundError, NotADirectoryError):
        if (workdir / "checkpoints").exists():
            raise UserError(
                f"{workdir} has checkpoints but no config.json: use another --workdir"
            ) from None
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read ({reason}): use another --workdir") from error
    old, new = _flat(recipe_to_json(saved)), _flat(recipe_to_json(recipe))
    for name in sorted(old.keys() | new.keys(), key=lambda name: (name != "stage", name)):
        top, _, rest = name.partition(".")
        if top in _FREE or (top == "data" and rest in _FREE_DATA):
            continue
        if old.get(name) != new.get(name):
            raise UserError(
                f"{workdir} holds a run with {name} {old.get(name)!r}, this one has "
                f"{new.get(name)!r}: use another --workdir, or the old value to continue"
            )
    return config.get("clip")


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        key: value
        for name, item in data.items()
        for key, value in _flat(item, f"{prefix}.{name}" if prefix else name).items()
    }


def write_description(
    recipe: Recipe, workdir: Path, tokenizer: Tokenizer | None, clip_id: str | None
) -> None:
    """Write config.json and tokenizer.json, each whole or not at all.

    A run that is to go on when the disk is full may go on with an older config.json, since only
    what is free to change can differ in it (see `check_same_run`).

    Args:
        tokenizer: None for a stage that reads no captions.
        clip_id: of the CLIP that the stage is trained for; None for a stage without one.
    Raises:
        UserError: the folder cannot be made, or a file not written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be made ({error.strerror})") from error
    config = {"recipe": recipe_to_json(recipe), "clip": clip_id}
    if tokenizer is not None and not (workdir / "tokenizer.json").exists():
        tokenizer.save(workdir / "tokenizer.json")
    path = workdir / "config.json"
    try:
        write_whole(path, (json.dumps(config, indent=1) + "\n").encode())
    except NotWritten as error:
        if recipe.checkpoint.on_disk_full == "stop" or not path.exists():
            raise
        print(f"{error.what}, the older one stays; training goes on", file=sys.stderr)
