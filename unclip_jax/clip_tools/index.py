"""An index of a folder of pictures: their embeddings as plain arrays, with their names.

    index.json        the CLIP, the folder, and every shard with the SHA-256 of its two files
    shard-00000.npy   [n, E] float16 or float32, unit norm, as numpy.save writes it
    shard-00000.json  the names of the n pictures, with size and time of change, and of those
                      pictures that could not be read

A shard is written once and never changed. What changes is which shards index.json lists, and that
file appears whole or not at all: an index can be searched while another run brings it up to date.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

import numpy as np

from unclip_jax.bounded import parse_json, read_bounded
from unclip_jax.clip_tools.array_file import MAX_ARRAY, pack_rows, unpack_rows
from unclip_jax.config import from_dict, to_dict
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.printable import printable

FORMAT = 1
MANIFEST = "index.json"
AGAIN = "run the same `unclip index` again, it writes what is missing or damaged"
"""The remedy for an index that is not whole."""
MAX_JSON = 64_000_000
"""Bytes of index.json, and of the list of a shard."""
CACHE_BYTES = 1 << 30
"""Indexes whose arrays need no more than this stay in memory once they were read."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class ShardEntry:
    """A shard as index.json lists it."""

    number: int
    """In the names of its files."""
    rows: int
    rows_sha256: str
    """Of the .npy."""
    list_sha256: str
    """Of the .json."""


@dataclass(frozen=True)
class Manifest:
    """What index.json says."""

    format: int
    finished: bool
    """False until every picture of the folder was looked at once."""
    clip_id: str
    """`weights_id` of the CLIP."""
    width: int
    """Of an embedding."""
    dtype: Literal["float16", "float32"]
    pictures: str
    """The folder of the pictures, seen from the index."""
    shards: tuple[ShardEntry, ...] = ()


@dataclass(frozen=True)
class ShardList:
    """What the .json of a shard says: of the pictures in it, and of those left out."""

    clip_id: str
    rows_sha256: str
    names: tuple[str, ...]
    """Of the pictures, relative to their folder, with '/'; first those of the rows, in order."""
    sizes: tuple[int, ...]
    """Bytes of each file."""
    modified: tuple[int, ...]
    """Nanoseconds since 1970, when each file was changed last."""
    unreadable: tuple[str, ...]
    """Why the last pictures of the list have no row."""

    @property
    def rows(self) -> int:
        """Pictures that have an embedding."""
        return len(self.names) - len(self.unreadable)


@dataclass(frozen=True, eq=False)
class PictureIndex:
    """An index that can be searched; see `open_index`."""

    folder: Path
    manifest: Manifest
    _kept: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return sum(entry.rows for entry in self.manifest.shards)

    @property
    def pictures(self) -> Path:
        """The folder of the pictures, where it was when they were indexed."""
        return Path(os.path.normpath(self.folder.resolve() / self.manifest.pictures))

    def embeddings(self, place: int) -> np.ndarray:
        """[n, E], of the shard at `place` in the manifest.

        Raises:
            UserError: its file is missing or damaged.
        """
        if place not in self._kept:
            entry = self.manifest.shards[place]
            rows = read_rows(self.folder, self.manifest, entry.number, entry.rows)
            _check_sha256(self.folder, entry.number, ".npy", rows[1], entry.rows_sha256)
            if rows[0].itemsize * self.manifest.width * len(self) > CACHE_BYTES:
                return rows[0]
            self._kept[place] = rows[0]
        return self._kept[place]

    def names(self, place: int) -> tuple[str, ...]:
        """Of the pictures of the shard at `place`, [n], relative to their folder.

        Raises:
            UserError: their list is missing or damaged.
        """
        entry = self.manifest.shards[place]
        listed, digest = read_list(self.folder, entry.number)
        _check_sha256(self.folder, entry.number, ".json", digest, entry.list_sha256)
        if listed.rows != entry.rows or listed.rows_sha256 != entry.rows_sha256:
            path = shard_path(self.folder, entry.number, ".json")
            raise UserError(f"{path} does not belong to its {MANIFEST}: {AGAIN}")
        return listed.names[: entry.rows]


def open_index(folder: str | Path) -> PictureIndex:
    """An index, for searching. A shard is read and compared with its SHA-256 when it is needed.

    Raises:
        UserError: there is none, it is not finished, or index.json is damaged.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder} holds no index (no {MANIFEST}): make one with "
            "`unclip index FOLDER --out INDEX`"
        )
    if not manifest.finished or not any(entry.rows for entry in manifest.shards):
        raise UserError(f"the index in {folder} is not finished: {AGAIN}")
    return PictureIndex(folder, manifest)


def check_clip(folder: Path, manifest: Manifest, clip_id: str, width: int) -> None:
    """UserError unless an index was made with the CLIP `clip_id`, of embeddings of `width`."""
    if (manifest.clip_id, manifest.width) != (clip_id, width):
        raise UserError(
            f"the index in {folder} was made with CLIP {printable(manifest.clip_id)}, this model's "
            f"is {clip_id}: take the model of the index, or index the pictures into another folder"
        )


def shard_path(folder: Path, number: int, suffix: str) -> Path:
    """Where a file of a shard lies."""
    return folder / f"shard-{number:05d}{suffix}"


def read_manifest(folder: Path) -> Manifest | None:
    """index.json, or None where the folder has none.

    Raises:
        UserError: it cannot be read, is of another version, or says what cannot be.
    """
    path = folder / MANIFEST
    remedy = "restore it, or delete the folder and index the pictures again"
    try:
        data = parse_json(read_bounded(path, MAX_JSON))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}): {remedy}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}: {remedy}")
    manifest = _typed(Manifest, data, path, remedy)
    entries = manifest.shards
    numbers = {entry.number for entry in entries}
    if (
        manifest.width < 1
        or len(numbers) < len(entries)
        or any(min(entry.number, entry.rows) < 0 for entry in entries)
        or any(entry.rows * manifest.width * 4 > MAX_ARRAY for entry in entries)
        or "\0" in manifest.pictures
    ):
        raise UserError(f"{path} is damaged (a number or a name cannot be): {remedy}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put index.json in its place."""
    write_whole(folder / MANIFEST, _json(manifest))


def read_list(folder: Path, number: int) -> tuple[ShardList, str]:
    """The list of a shard, and the SHA-256 of its file.

    Raises:
        UserError: it is missing or damaged, or has a name that leaves the folder of the pictures.
    """
    path = shard_path(folder, number, ".json")
    try:
        raw = read_bounded(path, MAX_JSON)
        data = parse_json(raw)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}): {AGAIN}") from None
    found = _typed(ShardList, data, path, AGAIN)
    count = len(found.names)
    if not len(found.sizes) == len(found.modified) == count >= len(found.unreadable):
        raise UserError(f"{path} is damaged (its columns differ in length): {AGAIN}")
    for name in found.names:
        if not is_inside(name):
            raise UserError(
                f"{path} names {printable(name)!r}, which is not below the folder of the pictures: "
                "take no index from strangers, index the pictures yourself"
            )
    return found, hashlib.sha256(raw).hexdigest()


def write_shard(folder: Path, number: int, rows: np.ndarray, listed: ShardList) -> ShardEntry:
    """Write the two files of a shard, the array first."""
    packed, text = pack_rows(rows), _json(listed)
    write_whole(shard_path(folder, number, ".npy"), packed)
    write_whole(shard_path(folder, number, ".json"), text)
    return ShardEntry(number, len(rows), listed.rows_sha256, hashlib.sha256(text).hexdigest())


def read_rows(folder: Path, manifest: Manifest, number: int, count: int) -> tuple[np.ndarray, str]:
    """The array of a shard [count, E], and the SHA-256 of its file.

    Raises:
        UserError: it is missing or damaged, not [count, E], or holds numbers that are not finite.
    """
    path = shard_path(folder, number, ".npy")
    try:
        raw = read_bounded(path, MAX_ARRAY)
        rows = unpack_rows(raw, (count, manifest.width), manifest.dtype)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}): {AGAIN}") from None
    return rows, hashlib.sha256(raw).hexdigest()


def is_inside(name: str) -> bool:
    """A relative path with '/' that stays below the folder it starts from."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name


def _check_sha256(folder: Path, number: int, suffix: str, found: str, expected: str) -> None:
    if found != expected:
        path = shard_path(folder, number, suffix)
        raise UserError(f"{path} is damaged (its SHA-256 is not that of {MANIFEST}): {AGAIN}")


def _typed(cls: type[_T], data: object, path: Path, remedy: str) -> _T:
    try:
        return from_dict(cls, data)
    except UserError as error:
        raise UserError(f"{path}: {error}; {remedy}") from None


def _json(data: Manifest | ShardList) -> bytes:
    return (json.dumps(to_dict(data)) + "\n").encode()


def _reason(error: BaseException) -> str:
    words = error.strerror if isinstance(error, OSError) else None
    return printable(words or str(error) or type(error).__name__)
