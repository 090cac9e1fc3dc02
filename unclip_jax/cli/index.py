"""sample.py index FOLDER --out INDEX: the pictures of a folder, ready to be searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unclip_jax.cli.clip_tools import ClipOptions, load_clip_alone, parse_verb, print_json
from unclip_jax.cli.progress import say
from unclip_jax.printable import printable

NAMED = 20
"""Pictures that cannot be read of which a line is printed."""


@dataclass(frozen=True, kw_only=True)
class IndexOptions(ClipOptions):
    """Encodes the pictures under a folder once, for `search`.

    Run again, it encodes what is new or changed and drops what is gone; killed and run again, it
    continues. Pictures that cannot be read are left out and named.
    """

    folder: str
    """The folder; pictures are found at any depth."""
    out: str = "index"
    """Folder for the index: plain arrays (.npy) and lists (.json)."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored embeddings; float16 needs half the disk, and may swap near equals."""
    shard_rows: int = 1024
    """Pictures a file, at most 65536. A killed run loses at most one file."""
    threads: int = 4
    """Threads that read and decode pictures."""


def main(arguments: Sequence[str]) -> int:
    """Writes the index; returns the exit code."""
    options = parse_verb(IndexOptions, "index", arguments)
    unclip = load_clip_alone(options)
    found = unclip.index(
        options.folder,
        options.out,
        dtype=options.dtype,
        shard_rows=options.shard_rows,
        threads=options.threads,
        say=say,
    )
    if options.json:
        bad = [{"name": name, "reason": reason} for name, reason in found.unreadable]
        counts = {"pictures": found.pictures, "encoded": found.encoded}
        print_json({"index": options.out, **counts, "unreadable": bad})
        return 0
    for name, reason in found.unreadable[:NAMED]:
        say(f"left out: {printable(name)}: {reason}")
    if len(found.unreadable) > NAMED:
        say(f"left out: {len(found.unreadable) - NAMED:,} more, which --json names")
    print(
        f"{printable(options.out)}: {found.pictures:,} pictures, {found.encoded:,} of them encoded "
        f"now, {len(found.unreadable):,} cannot be read"
    )
    return 0
