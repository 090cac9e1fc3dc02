"""unclip evaluate: what a model can do in numbers, and the pictures they come from."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unclip_jax.cli.overrides import parse
from unclip_jax.cli.progress import say
from unclip_jax.cli.prompts import read_prompts
from unclip_jax.errors import UserError


@dataclass(frozen=True)
class EvaluateOptions:
    """Retrieval of CLIP, cosines of the prior, caption match of the pictures, on the emoji.

    Writes evaluation.json, evaluation.md and the pictures into a folder, and prints the tables.
    """

    model: str = "emoji"
    """A shipped model, or a folder with clip/, prior/ and decoder/."""
    clip: str | None = None
    """A run or folder to measure instead of a model; alone, or with prior, or with all stages."""
    prior: str | None = None
    """The prior that goes with --clip."""
    decoder: str | None = None
    """The decoder that goes with --clip and --prior."""
    num_prompts: int = 20
    """Training prompts of the decoder, spread evenly over its concepts and styles."""
    prompts: str | None = None
    """File of training captions as prompts instead, 'red apple, 3d style' (.txt or .jsonl)."""
    num_images: int = 4
    """Pictures a prompt."""
    seed: int = 0
    """The same seed gives the same numbers."""
    batch_size: int | None = None
    """Rows a device and call; None is the model's own."""
    out: str = "eval"
    """Folder for the results."""

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_images", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}: give 1 or more")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}: give 0 to {2**32 - 1}")
        if self.clip is None and (self.prior is not None or self.decoder is not None):
            raise UserError(
                "--prior and --decoder need the CLIP they were trained for: name --clip"
            )
        if self.decoder is not None and self.prior is None:
            raise UserError("--decoder is measured from text: name --prior too")


def main(arguments: Sequence[str]) -> int:
    """Measures, writes and prints; returns the exit code."""
    options = parse(EvaluateOptions, arguments, default=None, program="unclip evaluate")
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    lines = read_prompts(options.prompts) if options.prompts is not None else []
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.evaluation.report import evaluate, load_material, save_evaluation
    from unclip_jax.pipeline import UnCLIP

    began = time.monotonic()
    stages = {"clip": options.clip, "prior": options.prior, "decoder": options.decoder}
    named = {stage: path for stage, path in stages.items() if path is not None}
    unclip = UnCLIP.load(named or options.model)
    if options.batch_size is not None:
        unclip = replace(unclip, sampling=replace(unclip.sampling, batch_size=options.batch_size))
    material = load_material(unclip, options.num_prompts, [line.prompt for line in lines])

    def report(text: str) -> None:
        say(f"[{time.monotonic() - began:.0f} s] {text}")

    result, grids = evaluate(
        unclip, material, seed=options.seed, per_prompt=options.num_images, say=report
    )
    sys.stdout.write(save_evaluation(out, result, grids))
    say(f"results and pictures in {out} ({time.monotonic() - began:.0f} s)")
    return 0
