"""Pictures with what they were made from, and their way to disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any

import numpy as np

from unclip_jax.bounded import open_regular
from unclip_jax.data.images import encode_png, make_grid, save_png
from unclip_jax.data.picture_manifest import (
    GRID,
    Entry,
    ManifestAppender,
    facts_key,
    manifest_line,
    write_manifest,
)
from unclip_jax.data.png_text import read_png_text
from unclip_jax.data.provenance import KEY, facts_text, picture_texts
from unclip_jax.errors import UserError
from unclip_jax.files import meant_for, write_whole

WAITING = 64
"""Pictures that may wait to be written before the caller of `PictureWriter.add` does."""
AT_ONCE = 1000
"""Files of which `find_pictures` keeps track together."""
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
    scores: tuple[float, ...] | None = None
    """CLIP's cosine of each with what was asked for, where that put them in order."""
    frames: int = 1
    """Pictures that belong together, one after another: a strip."""

    def save(
        self, folder: str | Path, columns: int | None = None, *, has_metadata: bool = True
    ) -> list[Path]:
        """PNGs with their metadata, manifest.jsonl, and grid.png with `columns` pictures a row.

        Args:
            has_metadata: False leaves no text in the pictures; the manifest has it all the same.
        Returns:
            the path of every picture, and last the grid's.
        Raises:
            UserError: the folder cannot be written.
        """
        folder = Path(folder)
        names = [picture_name(*one) for one in enumerate(self.metadata)]
        scores = self.scores or [None] * len(names)
        lines: dict[str, dict[str, Any]] = {}

        def note(line: dict[str, Any]) -> None:
            lines[line["path"]] = line

        with PictureWriter(folder, has_metadata=has_metadata, on_written=note) as writer:
            for one in zip(names, self.images, self.metadata, scores, strict=True):
                writer.add(*one)
        write_manifest(folder, (lines[name] for name in names))
        grid = make_grid(self.images, columns or min(8, len(self.images)))
        save_png(folder / GRID, grid)
        return [folder / name for name in (*names, GRID)]


class PictureWriter:
    """Writes PNGs on threads of its own, so that nobody who draws waits for a disk.

    Args:
        folder: made if it is not there.
        has_metadata: whether the files say what they were made from.
        manifest: where a line is appended for each picture that is on disk; None is nowhere.
        on_written: told each line, by one of the threads.
    Raises:
        UserError: the folder cannot be made; from `add` and at the end: a picture that could not be
            written.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        has_metadata: bool = True,
        manifest: Path | None = None,
        on_written: Callable[[dict[str, Any]], None] = lambda line: None,
    ) -> None:
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error.strerror}): name another") from error
        self._has_metadata, self._on_written = has_metadata, on_written
        self._manifest = None if manifest is None else ManifestAppender(manifest)
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="png")
        self._room = BoundedSemaphore(WAITING)
        self._begun: list[Future[None]] = []
        self.added = 0
        """Pictures; after the end without an error all of them are on disk."""

    def add(
        self, name: str, image: np.ndarray, facts: dict[str, Any], score: float | None = None
    ) -> None:
        """Queue a picture.

        Args:
            name: of its file.
            image: [H, W, 3] uint8, not to be changed any more.
            facts: what it was made from, see `data.provenance`.
            score: for the manifest.
        """
        self._room.acquire()
        done = [future for future in self._begun if future.done()]
        self._begun = [future for future in self._begun if not future.done()]
        for future in done:
            future.result()
        self._begun.append(self._pool.submit(self._write, name, image, facts, score))
        self.added += 1

    def _write(
        self, name: str, image: np.ndarray, facts: dict[str, Any], score: float | None
    ) -> None:
        try:
            texts = picture_texts(facts, *image.shape[1::-1]) if self._has_metadata else None
            data = encode_png(image, texts)
            write_whole(self._folder / name, data)
            digest, has_metadata = hashlib.sha256(data).hexdigest(), self._has_metadata
            line = manifest_line(name, digest, facts, has_metadata=has_metadata, score=score)
            if self._manifest is not None:
                self._manifest.add(line)
            self._on_written(line)
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
        if self._manifest is not None:
            self._manifest.close()
        if kind is None:
            for future in self._begun:
                future.result()


def find_pictures(
    folder: Path,
    names: Sequence[str],
    facts_of: Callable[[int], dict[str, Any]],
    entries: Mapping[str, Entry] | None = None,
) -> np.ndarray:
    """Which pictures of a job are in its folder already.

    A file is trusted by the text before its pixels and its end (see `read_png_text`): it appeared
    under its name when it was whole. One without metadata is trusted by its manifest.

    Args:
        names: of the pictures' files, in order.
        facts_of: number → what the picture is to be made from.
        entries: of the manifest, for pictures that are to hold no metadata; None for the others.
    Returns:
        [N] int8 of MISSING, OTHER and SAME.
    """
    there = _names(folder)

    def look(number: int) -> int:
        name = names[number]
        if name not in there:
            return MISSING
        try:
            if entries is None:
                is_same = read_png_text(folder / name, KEY) == facts_text(facts_of(number))
            else:
                is_same = _is_listed(folder / name, facts_of(number), entries.get(name))
        except OSError:
            return OTHER
        return SAME if is_same else OTHER

    found = np.zeros(len(names), np.int8)
    with ThreadPoolExecutor(16) as pool:  # on a network's disk each file is a wait
        for start in range(0, len(names), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(names)))
            found[numbers.start : numbers.stop] = list(pool.map(look, numbers))
    return found


def _is_listed(path: Path, facts: dict[str, Any], entry: Entry | None) -> bool:
    """Whether a file without metadata is the one that its manifest means."""
    if entry is None or entry.has_metadata or entry.facts != facts_key(facts):
        return False
    return file_digest(path) == entry.sha256


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex; raises OSError."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    words = _slug(facts["prompt"]) or facts.get("verb", "picture")
    return f"{number:05d}_{words}_{facts['index']}.png"


def _slug(text: str) -> str:
    """The letters and digits of a prompt, for a file name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()
    return "-".join(words)[:60].strip("-")
