"""What `sample.py text` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unclip_jax.cli.drawing_options import DrawingOptions
from unclip_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TextOptions(DrawingOptions):
    """Pictures from text: PNGs with their metadata, and a grid with a row for each prompt."""

    prompt: tuple[str, ...]
    """What to draw; several prompts in quotes."""
    prompts: str | None = None
    """File of prompts, or - for standard input: .txt, one a line, # for comments; .jsonl, objects
    with "prompt" and, where it differs from the command line's, seed, n (pictures), negative,
    guidance, name (of the file), or any other option that decides a picture, by its name here."""
    negative: str = ""
    """A prompt that guidance leads away from, for all prompts."""
    num_images: int = 4
    """Pictures a prompt."""
    grid: str | None = None
    """A sheet with words, one picture a cell: 'rows=prompts,cols=seeds' (--num-images of them, from
    --seed on), 'rows=prompts,cols=seeds:0..3', 'rows=prompts,cols=guidance:1,2,4' or
    'rows=prompts,cols=steps:10,25,50'."""
    format: Literal["png", "tar", "jsonl"] = "png"
    """png: a folder of pictures. tar: WebDataset shards of .png, .txt and .json. jsonl: a folder of
    pictures, and on standard output a line of JSON for each as soon as it is on disk."""
    shard_size: int = 1000
    """Pictures a tar."""
    out: str = "out"
    """Folder for the pictures. Those that are in it and were made from the same prompt, seed,
    settings, weights and versions stay as they are, so a job that was killed continues; others of
    the same number and prompt are replaced. SIGTERM and Ctrl-C end a job after the micro-batch that
    is being drawn, with exit code 143 and 130; a second one ends it at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard_size < 1:
            raise UserError(f"--shard-size is {self.shard_size}: give 1 or more")


PER_RUN = ("model", "out", "batch_size", "stages_at_once", "dtype", "no_metadata")
"""Options of a whole command that no line of a file can change."""
