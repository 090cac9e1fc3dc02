"""What turns pictures into the features that distances are taken between, and the stream of them.

An extractor is a name, how one picture is prepared on the host, and a function of a full batch of
prepared pictures. `extractors.py` has Inception, a model's own CLIP and any plain function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.generation.rows import micro_batches


@dataclass(frozen=True, eq=False)
class Extractor:
    """A function of pictures to vectors."""

    name: str
    """In tables: inception, clip."""
    key: str
    """Names what is computed, weights and preparation: equal keys give equal features."""
    width: int
    """D, of the features."""
    batch: int
    """Rows of a call, on all devices together."""
    prepare: Callable[[np.ndarray], np.ndarray]
    """A picture [H, W, 3] uint8 of any size → one row; all rows have one shape and dtype."""
    embed: Callable[[np.ndarray], Any]
    """[batch, ...] rows → [batch, D]; row i depends on row i alone. What it returns is waited for
    only when the next batch is prepared."""


def stream_features(extractor: Extractor, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Features in the order of the pictures, a block for each batch.

    Every call has `extractor.batch` rows, the last filled up, so one program is compiled. While the
    devices work on a batch the host prepares the next; nothing older is held.

    Args:
        pictures: [H, W, 3] uint8 each, of any size; taken one by one.
    Yields:
        [b, D] float32.
    Raises:
        UserError: a feature is not finite.
    """
    source = iter(pictures)
    running: tuple[Any, int] | None = None
    while True:
        rows = [extractor.prepare(picture) for picture in islice(source, extractor.batch)]
        started = None
        if rows:
            ((part, count),) = micro_batches({"picture": np.stack(rows)}, extractor.batch)
            started = extractor.embed(part["picture"]), count
        if running is not None:
            yield _finished(extractor, *running)
        if started is None:
            return
        running = started


def extract_features(extractor: Extractor, pictures: Iterable[np.ndarray]) -> np.ndarray:
    """All features: [N, D] float32.

    Raises:
        UserError: there is no picture.
    """
    blocks = list(stream_features(extractor, pictures))
    if not blocks:
        raise UserError("there is no picture to measure: give one or more")
    return np.concatenate(blocks)


def _finished(extractor: Extractor, result: Any, count: int) -> np.ndarray:
    features = np.asarray(result, np.float32)
    if features.shape != (extractor.batch, extractor.width):
        raise ValueError(
            f"{extractor.name} returned {features.shape} for {extractor.batch} pictures and a "
            f"width of {extractor.width}"
        )
    if not np.isfinite(features).all():
        raise UserError(
            f"{extractor.name} makes no finite numbers of a picture: restore its weights"
        )
    return features[:count]
