"""unclip evaluate: what a model can do in numbers, and the pictures they come from; or a folder of
generated pictures beside real ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unclip_jax.cli.overrides import parse
from unclip_jax.cli.progress import say
from unclip_jax.cli.prompts import read_prompts
from unclip_jax.data.emoji_splits import SPLITS
from unclip_jax.errors import UserError, choose
from unclip_jax.files import check_folder

if TYPE_CHECKING:
    from unclip_jax.pipeline import UnCLIP

FEATURES = ("inception", "clip")


@dataclass(frozen=True)
class EvaluateOptions:
    """Retrieval of CLIP, cosines of the prior, caption match of the pictures, on the emoji.

    Writes evaluation.json, evaluation.md and the pictures into a folder, and prints the tables.
    With --generated and --real: FID, KID and others of the one set of pictures beside the other.
    """

    generated: str | None = None
    """A folder of pictures to measure instead of a model; needs --real."""
    real: str | None = None
    """What --generated is compared with: a folder of pictures, or emoji:SPLIT."""
    train: str | None = None
    """Folder or emoji:SPLIT in which copies are looked for; --real was held out then."""
    features: str = "inception,clip"
    """Of --generated: inception (FID, KID), clip (the model's), or both."""
    model: str = "emoji"
    """A shipped model, or a folder with clip/, prior/ and decoder/."""
    clip: str | None = None
    """A run or folder to measure instead of a model; alone, or with prior, or with all stages."""
    prior: str | None = None
    """The prior that goes with --clip."""
    decoder: str | None = None
    """The decoder that goes with --clip and --prior."""
    judge: str | None = None
    """A CLIP's run or folder that is asked about the decoder's pictures; none asks the model's own,
    which flatters."""
    split: str = "train"
    """Emoji that the prompts are from: train (what the decoder was trained on), test_cells (those
    things in styles that were held out) or test (things that were held out)."""
    num_prompts: int = 20
    """Prompts, spread evenly over concepts and styles."""
    prompts: str | None = None
    """File of captions of the split as prompts instead, 'red apple, 3d style' (.txt or .jsonl)."""
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
        if self.split not in SPLITS:
            raise UserError(f"--split {self.split!r} is unknown; {choose(self.split, SPLITS)}")
        self._check_pictures()
        if self.clip is None and (self.prior is not None or self.decoder is not None):
            raise UserError(
                "--prior and --decoder need the CLIP they were trained for: name --clip"
            )
        if self.decoder is not None and self.prior is None:
            raise UserError("--decoder is measured from text: name --prior too")

    def _check_pictures(self) -> None:
        """What belongs to --generated, and what does not."""
        if (self.generated is None) != (self.real is None):
            raise UserError("--generated and --real are compared: name both")
        if self.generated is None and self.train is not None:
            raise UserError("--train is for --generated: name --generated and --real too")
        for name in self.features.split(","):
            if name not in FEATURES:
                raise UserError(f"--features: {name!r} is unknown; {choose(name, FEATURES)}")
        if self.generated is not None:
            for name in ("prior", "decoder", "judge", "prompts"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name} is for a model, not for --generated: leave it out")


def main(arguments: Sequence[str]) -> int:
    """Measures, writes and prints; returns the exit code."""
    options = parse(EvaluateOptions, arguments, default=None, program="unclip evaluate")
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    if options.generated is not None:
        return _measure_pictures(options, out)
    return _measure_model(options, out)


def _measure_model(options: EvaluateOptions, out: Path) -> int:
    lines = read_prompts(options.prompts) if options.prompts is not None else []
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.evaluation.report import evaluate, load_material, save_evaluation
    from unclip_jax.pipeline import UnCLIP

    report = _reporter()
    unclip = _load(options)
    judge = None if options.judge is None else UnCLIP.load({"clip": options.judge})
    named = [line.prompt for line in lines]
    material = load_material(unclip, options.num_prompts, named, options.split)

    result, grids = evaluate(
        unclip, material, seed=options.seed, per_prompt=options.num_images, say=report, judge=judge
    )
    sys.stdout.write(save_evaluation(out, result, grids))
    report(f"results and pictures in {out}")
    return 0


def _measure_pictures(options: EvaluateOptions, out: Path) -> int:
    assert options.generated is not None and options.real is not None
    from unclip_jax.evaluation.picture_sets import open_pictures

    generated = open_pictures(options.generated, "--generated")
    side = min(generated.picture(0).shape[:2])
    real = open_pictures(options.real, "--real", side)
    train = None if options.train is None else open_pictures(options.train, "--train", side)
    check_folder(out)
    from unclip_jax.cli.runtime import prepare_jax

    prepare_jax()
    from unclip_jax.evaluation.extractors import clip_extractor, inception_extractor
    from unclip_jax.evaluation.inception_weights import load_inception
    from unclip_jax.evaluation.picture_scores import measure_pictures
    from unclip_jax.evaluation.picture_sheets import write_sheets
    from unclip_jax.evaluation.picture_table import save_report

    report, extractors = _reporter(), []
    for name in dict.fromkeys(options.features.split(",")):
        if name == "inception":
            extractors.append(inception_extractor(load_inception(), options.batch_size or 16))
        else:
            extractors.append(clip_extractor(_load(options)))
    found = measure_pictures(generated, real, extractors, train, seed=options.seed, say=report)
    sys.stdout.write(save_report(out, found))
    write_sheets(out, found, generated, real, train)
    report(f"results in {out}")
    return 0


def _load(options: EvaluateOptions) -> UnCLIP:
    """The model, or the stages that are named."""
    from unclip_jax.pipeline import UnCLIP

    stages = {"clip": options.clip, "prior": options.prior, "decoder": options.decoder}
    named = {stage: path for stage, path in stages.items() if path is not None}
    unclip = UnCLIP.load(named or options.model)
    if options.batch_size is not None:
        unclip = replace(unclip, sampling=replace(unclip.sampling, batch_size=options.batch_size))
    return unclip


def _reporter() -> Callable[[str], None]:
    """Says lines with the seconds since now."""
    began = time.monotonic()

    def report(text: str) -> None:
        say(f"[{time.monotonic() - began:.0f} s] {text}")

    return report
