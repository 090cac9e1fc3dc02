"""Pictures with what they were made from, and their way to disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.data.images import make_grid, save_png


@dataclass(frozen=True)
class Samples:
    """Pictures with what they were made from."""

    images: np.ndarray
    """[N, H, W, 3] uint8."""
    embeddings: np.ndarray | None
    """[N, E] float32, unit norm: the image embedding that each was decoded from, if there was one.
    """
    metadata: tuple[dict[str, Any], ...]
    """prompt, seed, index and settings of each."""

    def save(self, folder: str | Path, columns: int | None = None) -> list[Path]:
        """PNGs with their metadata, and grid.png with `columns` pictures a row.

        Returns:
            the path of every picture, and last the grid's.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, (image, facts) in enumerate(zip(self.images, self.metadata, strict=True)):
            path = folder / f"{number:05d}_{_slug(facts['prompt'])}_{facts['index']}.png"
            save_png(path, image, {"unclip": json.dumps(facts, ensure_ascii=False)})
            paths.append(path)
        grid = make_grid(self.images, columns or min(8, len(self.images)))
        save_png(folder / "grid.png", grid)
        return [*paths, folder / "grid.png"]


def _slug(text: str) -> str:
    """The letters and digits of a prompt, for a file name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()
    return "-".join(words)[:60].strip("-") or "picture"
