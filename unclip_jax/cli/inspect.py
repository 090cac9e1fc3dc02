"""unclip inspect PATH: what a file or folder holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from unclip_jax.cli.overrides import load_recipe, parse
from unclip_jax.errors import UserError
from unclip_jax.printable import printable


@dataclass(frozen=True)
class InspectOptions:
    """What is in a checkpoint, a run, an exported stage, a model, PyTorch or safetensors weights, a
    store of embeddings, a picture, JSON, JSON lines or a recipe.

    Weights are counted from their headers and are not loaded. Nothing is executed, except a recipe
    with --run. Exit code 1 if something is damaged.
    """

    path: str
    """A file, a folder, or a shipped model's name."""
    verify: bool = False
    """Read everything: checksums of runs and embeddings, numbers that are not finite, and whether
    the weights that a picture names are those of the model here."""
    depth: int = 2
    """Parts of the weights' names that are told apart."""
    run: bool = False
    """Of a recipe: execute the file, as training does, and count its parameters."""
    json: bool = False
    """One JSON object instead of a table."""

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= 20:
            raise UserError(f"--depth is {self.depth}: give 1 to 20")


def main(arguments: Sequence[str]) -> int:
    """Prints what was found; returns 1 if something of it is damaged, else 0."""
    options = parse(InspectOptions, arguments, default=None, program="unclip inspect")
    from unclip_jax.inspection.findings import to_json, to_text
    from unclip_jax.inspection.look import look_at

    run = load_recipe if options.run else None
    found = look_at(options.path, verify=options.verify, run=run)
    if options.json:
        shown = {"path": printable(options.path, 4000), **to_json(found, options.depth)}
        print(json.dumps(shown, indent=1))
    else:
        print(to_text(found, options.path, options.depth))
    return 1 if found.all_problems() else 0
