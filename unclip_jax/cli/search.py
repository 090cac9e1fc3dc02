"""sample.py search INDEX "a red apple": the pictures of an index that are nearest to a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unclip_jax.cli.clip_tools import (
    ClipOptions,
    check_photos,
    check_text,
    load_clip_alone,
    parse_verb,
    print_json,
    read_photos,
)
from unclip_jax.cli.progress import say
from unclip_jax.errors import UserError
from unclip_jax.printable import printable

if TYPE_CHECKING:
    from unclip_jax.clip_tools.search import Hit

SIDE, COLUMNS = 128, 5
"""Of a picture on the contact sheet, in pixels, and pictures a row."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions(ClipOptions):
    """Finds the pictures of an index nearest to a text, to a picture, or to several of both, with
    their cosines."""

    index: str
    """Folder that `index` wrote."""
    texts: tuple[str, ...]
    """What to look for; several texts in quotes count together."""
    picture: tuple[str, ...] = ()
    """Pictures to look for, together with the texts or alone."""
    weights: tuple[float, ...] = ()
    """One for each text and then for each picture; below 0 leads away. All equal if not given."""
    top: int = 10
    """Pictures to find."""
    sheet: str | None = None
    """PNG to write with the pictures that were found."""
    folder: str | None = None
    """Where the pictures lie now, if not where they were when they were indexed."""


def main(arguments: Sequence[str]) -> int:
    """Prints the names; returns the exit code."""
    options = parse_verb(SearchOptions, "search", arguments)
    texts = [check_text(text, f"text {place}") for place, text in enumerate(options.texts, 1)]
    if not texts and not options.picture:
        raise UserError("there is nothing to search for: give a text, or --picture photo.png")
    if options.picture:
        check_photos(options.picture, "search")
    if options.sheet is not None and Path(options.sheet).suffix.lower() != ".png":
        raise UserError(f"--sheet {options.sheet}: give a name that ends in .png")
    if options.folder is not None and not Path(options.folder).is_dir():
        raise UserError(f"--folder {options.folder} is no folder: name that of the pictures")
    from unclip_jax.clip_tools.index import open_index

    index = open_index(options.index)  # before the model is loaded
    unclip = load_clip_alone(options)
    pictures = list(read_photos(options.picture))
    hits = unclip.search(index, texts, pictures, options.weights, options.top)
    paths = [Path(options.folder) / hit.name if options.folder else hit.path for hit in hits]
    for rank, (hit, path) in enumerate(zip(hits, paths, strict=True), 1):
        if options.json:
            print_json({"rank": rank, "cosine": hit.cosine, "name": hit.name, "path": str(path)})
        else:
            print(f"{rank:4}  {hit.cosine:+.3f}  {printable(hit.name, None)}")
    if options.sheet is not None:
        _write_sheet(Path(options.sheet), hits, paths)
    return 0


def _write_sheet(sheet: Path, hits: Sequence[Hit], paths: Sequence[Path]) -> None:
    """The pictures side by side, in their order; those that are gone are left out and named."""
    import numpy as np

    from unclip_jax.data.images import (
        BadImage,
        decode_image,
        make_grid,
        picture_bytes,
        resize_and_crop,
        save_png,
    )

    squares = []
    for hit, path in zip(hits, paths, strict=True):
        try:
            data = picture_bytes(path, name=hit.name)
            squares.append(resize_and_crop(decode_image(data, name=hit.name), SIDE))
        except BadImage as error:
            say(f"not on the sheet: {error}")
    if not squares:
        raise UserError(
            f"--sheet {sheet}: none of the pictures is in {paths[0].parent} any more: say where "
            "they are with --folder"
        )
    save_png(sheet, make_grid(np.stack(squares), COLUMNS))
    say(f"{len(squares)} pictures side by side in {sheet}")
