"""What was measured to look at: both sets side by side, and the likeliest copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unclip_jax.data.images import make_grid, resize_and_crop, save_png
from unclip_jax.evaluation.picture_scores import PictureReport
from unclip_jax.evaluation.picture_sets import PictureSet

SHOWN, COLUMNS = 64, 8
"""Pictures of a set on its sheet, evenly spaced over it, and in a row."""
LARGEST = 256
"""Side of a picture on a sheet at most."""


def write_sheets(
    out: Path,
    report: PictureReport,
    generated: PictureSet,
    real: PictureSet,
    train: PictureSet | None,
) -> None:
    """generated.png and real.png; with `train` also copies.png, each of the report's likeliest
    copies above the training picture nearest to it.

    Raises:
        UserError: a file cannot be written.
    """
    side = min(LARGEST, *generated.picture(0).shape[:2])
    for name, pictures in (("generated", generated), ("real", real)):
        count = min(SHOWN, len(pictures))
        rows = [i * len(pictures) // count for i in range(count)]
        save_png(out / f"{name}.png", _grid(pictures, rows, side))
    if train is not None:
        mine, theirs = (
            {name: row for row, name in enumerate(one.names)} for one in (generated, train)
        )
        pairs = report.likeliest_copies
        above = _grid(generated, [mine[pair.generated] for pair in pairs], side, len(pairs))
        below = _grid(train, [theirs[pair.training] for pair in pairs], side, len(pairs))
        save_png(out / "copies.png", np.concatenate([above, below]))


def _grid(
    pictures: PictureSet, rows: Sequence[int], side: int, columns: int = COLUMNS
) -> np.ndarray:
    squares = [resize_and_crop(pictures.picture(row), side) for row in rows]
    return make_grid(np.stack(squares), columns)
