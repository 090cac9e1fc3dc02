"""unclip compare karlo FOLDER: a PyTorch reference beside this package, block by block."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unclip_jax.cli.overrides import parse
from unclip_jax.errors import UserError
from unclip_jax.files import missing

_PROMPTS = ("a red apple on a wooden table", "a photograph of a teddy bear")
_STEPS = (25, 25, 7)


@dataclass(frozen=True)
class CompareOptions:
    """Runs the PyTorch reference and this package with the same weights, inputs and noise, and
    prints every block with its error, then every step of the sampling, then whether all passed.
    Exit code 1 if a row does not. Where torch is not installed, give a trace that was recorded
    where it is."""

    reference: Literal["karlo", "clip", "dalle2_pytorch", "glide"]
    """Which reference."""
    folder: str
    """The checkpoint: a folder, or a file."""
    record: str | None = None
    """Write what the reference was given and what it said into this file."""
    trace: str | None = None
    """Read such a file instead of running the reference."""
    model: str | None = None
    """karlo: take our side from this folder, which `unclip convert` wrote, instead of reading the
    checkpoint anew."""
    prompt: tuple[str, ...] | None = None
    """karlo, clip, glide: captions; None is an apple and a teddy bear."""
    steps: tuple[int, int, int] | None = None
    """karlo: of prior, decoder and upsampler; None is 25 25 7."""
    seed: int | None = None
    """Of inputs and noise; None is 0."""
    out: str | None = None
    """Folder for the table as text and for the pictures side by side."""
    config: str | None = None
    """dalle2_pytorch: the JSON config, if it is not in the file."""
    era: str | None = None
    """dalle2_pytorch: legacy or current, or the version that wrote the file."""
    clip_model: str | None = None
    """clip, a bare state dict: openai, or a model of OpenCLIP such as ViT-H-14."""


def main(arguments: Sequence[str]) -> int:
    """Prints the table; returns 0 if every row passes, else 1."""
    options = parse(CompareOptions, arguments, default=None, program="unclip compare")
    if options.steps is not None and min(options.steps) < 2:
        raise UserError(f"--steps is {options.steps}: give 2 or more for each stage")
    if options.prompt is not None and not options.prompt:
        raise UserError("--prompt is empty: give a caption, or leave it out")
    if (options.seed or 0) < 0:
        raise UserError(f"--seed is {options.seed}: give 0 or more")
    if options.out and Path(options.out).expanduser().is_file():
        raise UserError(f"--out {options.out} is a file: name a folder")
    if options.record and options.trace:
        raise UserError("--record runs the reference and --trace replaces it: give one of them")
    for name in ("prompt", "steps", "seed"):
        if options.trace and getattr(options, name) is not None:
            raise UserError(f"--trace holds its inputs, noise and steps: leave --{name} out")
    import jax

    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    # Products of float32 in less than float32 would hide what is compared.
    jax.config.update("jax_default_matmul_precision", "highest")
    from unclip_jax.interop.comparison.rows import table

    began = time.monotonic()
    rows, notes, pictures = _sides(options)
    print(table(rows))
    failed = [row for row in rows if not row.passes]
    lines = [*notes, _verdict(rows, failed, time.monotonic() - began)]
    print("\n".join(lines))
    if options.out:
        folder = Path(options.out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join([table(rows), *lines]) + "\n"
        (folder / "comparison.txt").write_text(text, encoding="utf-8")
        if pictures:
            _save_pictures(folder / "comparison.png", pictures)
    return 1 if failed else 0


def _sides(options: CompareOptions) -> tuple[list[Any], list[str], list[Any]]:
    """Rows, remarks, and pictures (the reference's, ours) if there are any."""
    folder = Path(options.folder).expanduser()
    if not folder.exists():
        raise UserError(f"{folder} {missing(folder)}")
    belongs = {"model": "karlo", "clip_model": "clip", "config": "dalle2_pytorch"}
    belongs |= {"era": "dalle2_pytorch", "steps": "karlo"}
    for name, reference in belongs.items():
        if getattr(options, name) is not None and options.reference != reference:
            raise UserError(f"--{name.replace('_', '-')} is for {reference}: leave it out")
    if options.prompt is not None and options.reference == "dalle2_pytorch":
        raise UserError("--prompt is for the others, this one reads embeddings: leave it out")
    if options.record and not Path(options.record).expanduser().parent.is_dir():
        raise UserError(f"--record {options.record}: its folder does not exist, make it first")
    given = {
        "record": None if options.record is None else Path(options.record).expanduser(),
        "trace": None if options.trace is None else Path(options.trace).expanduser(),
        "seed": options.seed or 0,
        "progress": lambda stage: print(f"reference: {stage} ...", flush=True),
    }
    prompts = options.prompt or _PROMPTS
    if options.reference == "karlo":
        from unclip_jax.interop.comparison.run_karlo import run_karlo

        model = None if options.model is None else Path(options.model).expanduser()
        return run_karlo(folder, model, prompts, options.steps or _STEPS, **given)
    if options.reference == "clip":
        from unclip_jax.interop.comparison.clip import run_clip

        return run_clip(folder, prompts, **given, model=options.clip_model)
    if options.reference == "glide":
        from unclip_jax.interop.comparison.glide import run_glide

        return run_glide(folder, prompts, **given)
    from unclip_jax.interop.comparison.dalle2 import run_dalle2

    config = None if options.config is None else Path(options.config).expanduser()
    if config is not None and not config.is_file():
        raise UserError(f"{config} does not exist: name the JSON config")
    return run_dalle2(folder, config, options.era, **given)


def _verdict(rows: list[Any], failed: list[Any], seconds: float) -> str:
    if not failed:
        worst = max(rows, key=lambda row: row.relative / row.tolerance if row.tolerance else 0)
        return (
            f"all {len(rows)} rows pass ({seconds:.0f} s); nearest to its tolerance: {worst.name}, "
            f"{worst.relative:.1e} of {worst.tolerance:.0e}"
        )
    return (
        f"{len(failed)} of {len(rows)} rows differ ({seconds:.0f} s); the first is {failed[0].name}"
    )


def _save_pictures(path: Path, pictures: list[Any]) -> None:
    import numpy as np

    from unclip_jax.data.images import make_grid, save_png

    reference, ours = (
        np.clip(np.round((np.asarray(side) + 1) * 127.5), 0, 255).astype(np.uint8)
        for side in pictures
    )
    pairs = np.stack([reference, ours], 1).reshape(-1, *reference.shape[1:])
    save_png(path, make_grid(pairs, 2))
    print(f"the reference's pictures on the left, ours on the right: {path}")
