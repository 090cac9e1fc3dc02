"""Pictures with what they were made from, and their way to disk."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any

import numpy as np

from unclip_jax.data.images import (
    MAX_PIXELS,
    BadImage,
    decode_image,
    make_grid,
    picture_bytes,
    save_png,
)
from unclip_jax.data.png_text import read_png_text
from unclip_jax.errors import UserError
from unclip_jax.files import meant_for

WAITING = 64
"""Pictures that may wait to be written before the caller of `PictureWriter.add` does."""
KEY = "unclip"
"""Of the text in a PNG that says what it was made from."""
MISSING, OTHER, SAME = 0, 1, 2
"""What `find_pictures` says of a file: not there; cut off or made from something else; as asked."""


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
        Raises:
            UserError: the folder cannot be written.
        """
        with PictureWriter(folder) as writer:
            for number, (image, facts) in enumerate(zip(self.images, self.metadata, strict=True)):
                writer.add(number, image, facts)
        grid = make_grid(self.images, columns or min(8, len(self.images)))
        path = Path(folder) / "grid.png"
        save_png(path, grid)
        return [*(Path(folder) / picture_name(*one) for one in enumerate(self.metadata)), path]


class PictureWriter:
    """Writes PNGs on threads of its own, so that nobody who draws waits for a disk.

    Raises:
        UserError: the folder cannot be made; from `add` and at the end: a picture that could not be
            written.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error.strerror}): name another") from error
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="png")
        self._room = BoundedSemaphore(WAITING)
        self._begun: list[Future[None]] = []
        self.added = 0
        """Pictures; after the end without an error all of them are on disk."""

    def add(self, number: int, image: np.ndarray, facts: dict[str, Any]) -> None:
        """Queue a picture.

        Args:
            number: first in the file's name.
            image: [H, W, 3] uint8, not to be changed any more.
            facts: what it was made from, with prompt and index; written into the file as JSON.
        """
        self._room.acquire()
        done = [future for future in self._begun if future.done()]
        self._begun = [future for future in self._begun if not future.done()]
        for future in done:
            future.result()
        path = self._folder / picture_name(number, facts)
        self._begun.append(self._pool.submit(self._write, path, image, facts))
        self.added += 1

    def _write(self, path: Path, image: np.ndarray, facts: dict[str, Any]) -> None:
        try:
            save_png(path, image, {KEY: _text(facts)})
        except UserError as error:
            raise UserError(f"{error}: it continues") from None
        finally:
            self._room.release()

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        if kind is None:
            for future in self._begun:
                future.result()


def find_pictures(folder: Path, metadata: Sequence[dict[str, Any]]) -> np.ndarray:
    """Which pictures of a job are in its folder already.

    A file is trusted by the text before its pixels and its end (see `read_png_text`): it appeared
    under its name when it was whole.

    Args:
        metadata: of each picture, in order, as for `PictureWriter.add`.
    Returns:
        [N] int8 of MISSING, OTHER and SAME.
    """
    there = _names(folder)

    def look(number: int) -> int:
        facts = metadata[number]
        name = picture_name(number, facts)
        if name not in there:
            return MISSING
        try:
            return SAME if read_png_text(folder / name, KEY) == _text(facts) else OTHER
        except OSError:
            return OTHER

    with ThreadPoolExecutor(16) as pool:  # on a network's disk each file is a wait
        return np.fromiter(pool.map(look, range(len(metadata))), np.int8, len(metadata))


def find_scratch(folder: Path, names: Container[str]) -> list[Path]:
    """Unfinished files that were to become one of `names`: of a killed writer, or being written."""
    return [folder / name for name in _names(folder) if (meant_for(name) or "") in names]


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:  # it is not there yet, or what writes into it will say why not
        return set()


def picture_name(number: int, facts: dict[str, Any]) -> str:
    """Of a picture's file, as '00012_a-red-apple_3.png': its number, prompt and index."""
    return f"{number:05d}_{_slug(facts['prompt'])}_{facts['index']}.png"


def grid_of_files(paths: Sequence[Path], columns: int) -> tuple[np.ndarray, int]:
    """`make_grid` of pictures on disk, all of one size, in as many whole rows as a viewer can open.

    Returns:
        the grid [H, W, 3] uint8, and how many of the pictures are in it.
    Raises:
        UserError: one of them is not there or cannot be decoded.
    """

    def read(path: Path) -> np.ndarray:
        if not path.exists():
            raise UserError(
                f"no grid: {path} is missing; let all hosts write into one folder that each of "
                "them sees"
            )
        try:
            return decode_image(picture_bytes(path), name=str(path))
        except BadImage as error:
            raise UserError(f"{error}: delete it and run the same command again") from None

    first = read(paths[0])
    rows = max(1, MAX_PIXELS // (columns * first.shape[0] * first.shape[1]))
    shown = paths[: rows * columns]
    return make_grid(np.stack([first, *map(read, shown[1:])]), columns), len(shown)


def _text(facts: dict[str, Any]) -> str:
    # A prompt that was no UTF-8 on the command line has surrogates, which PNG cannot hold; Python's
    # escapes of them are JSON's.
    return json.dumps(facts, ensure_ascii=False).encode(errors="backslashreplace").decode()


def _slug(text: str) -> str:
    """The letters and digits of a prompt, for a file name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()
    return "-".join(words)[:60].strip("-") or "picture"
