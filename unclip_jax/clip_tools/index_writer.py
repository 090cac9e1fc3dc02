"""Indexes a folder of pictures (see `index.py`); run again, it encodes what is new or changed.

A picture is known by its name, its size and the time of its last change. A shard all of whose
pictures are still as they were stays; of the others, and of those that are not full, the rows that
still hold are copied into new shards beside the pictures that are encoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from unclip_jax.clip_tools.array_file import pack_rows
from unclip_jax.clip_tools.encoding import FileEncoder, clip_config
from unclip_jax.clip_tools.index import (
    FORMAT,
    MANIFEST,
    Manifest,
    ShardEntry,
    ShardList,
    check_clip,
    read_list,
    read_manifest,
    read_rows,
    write_manifest,
    write_shard,
)
from unclip_jax.data.folder_source import list_pictures
from unclip_jax.data.records import PICTURES
from unclip_jax.errors import UserError
from unclip_jax.files import meant_for, missing
from unclip_jax.generation.bundle import Bundle
from unclip_jax.printable import printable
from unclip_jax.training.run_lock import RunLock

Dtype = Literal["float16", "float32"]
_SHARD = re.compile(r"shard-([0-9]{5,})\.(npy|json)")
_OWN = re.compile(rf"{_SHARD.pattern}|{re.escape(MANIFEST)}|lock|\..*\.tmp")


@dataclass(frozen=True)
class Indexed:
    """What `write_index` did."""

    pictures: int
    """In the index now."""
    encoded: int
    """Of them, by this call."""
    unreadable: tuple[tuple[str, str], ...]
    """Name and reason of each picture of the folder that is not in the index."""


@dataclass(frozen=True)
class _Picture:
    """A picture as its file shows it."""

    name: str
    size: int
    modified: int


def write_index(
    bundle: Bundle,
    folder: str | Path,
    out: str | Path,
    *,
    dtype: Dtype = "float32",
    shard_rows: int = 1024,
    threads: int = 4,
    say: Callable[[str], None] = lambda line: None,
) -> Indexed:
    """Bring the index in `out` up to date with the pictures under `folder`, or make it.

    A killed run loses one shard at most; pictures that cannot be read are left out and listed.

    Args:
        folder: its pictures are found at any depth, by the endings of their names.
        dtype: of the stored embeddings; float16 needs half the disk, and may swap near equals.
        shard_rows: pictures a shard, 65,536 at most.
        threads: that read and decode pictures.
        say: told of the progress, a line at a time.
    Raises:
        UserError: no pictures, or none that can be read; `out` holds an index of another CLIP or
            other files, or cannot be written.
    """
    if not 1 <= shard_rows <= 1 << 16:
        raise UserError(f"shard_rows is {shard_rows}: give 1 to 65536")
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    found = _list_files(folder)
    _check_folder(out)
    with RunLock(out, "--out"):
        manifest = _claim(bundle, folder, out, dtype)
        kept, donors = _sort_shards(out, manifest, found, shard_rows)
        held = {name for listed in kept.values() for name in listed.names}
        todo = [picture for name, picture in found.items() if name not in held]
        if kept and todo:
            say(f"{len(held):,} of {len(found):,} pictures are in the index already")
        entries = {number: _entry(out, number, listed) for number, listed in kept.items()}
        encoder = FileEncoder(bundle, folder, threads, say)
        writer = _Writer(encoder, out, manifest, donors)
        first = max([*_numbers(out), -1]) + 1
        for place, start in enumerate(range(0, len(todo), shard_rows)):
            number, part = first + place, todo[start : start + shard_rows]
            entries[number], kept[number] = writer.write(number, part)
        return _finish(out, manifest, entries, kept, encoder.encoded)


def _list_files(folder: Path) -> dict[str, _Picture]:
    """The pictures under a folder, by name in order."""
    if not folder.exists():
        raise UserError(f"{folder} {missing(folder)}")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the folder of the pictures")
    found = {}
    for name in list_pictures(folder):
        with contextlib.suppress(OSError):  # it went away, or is a broken link
            facts = (folder / name).stat()
            found[name] = _Picture(name, facts.st_size, facts.st_mtime_ns)
    if not found:
        raise UserError(f"{folder} has no pictures ({', '.join(PICTURES)}) in it: name another")
    return found


def _check_folder(out: Path) -> None:
    """UserError unless `out` holds an index, or nothing, or is not there yet."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    if out.is_dir() and not (out / MANIFEST).exists():
        foreign = sorted(entry.name for entry in out.iterdir() if not _OWN.fullmatch(entry.name))
        if foreign:
            raise UserError(
                f"--out {out} holds other files ({printable(foreign[0])}): name a new folder"
            )


def _claim(bundle: Bundle, folder: Path, out: Path, dtype: Dtype) -> Manifest:
    """The manifest that is there, or a new unfinished one: `out` is for this index alone."""
    place = os.path.relpath(folder.resolve(), out.resolve())
    found, width = read_manifest(out), clip_config(bundle).embedding_width
    if found is None:
        manifest = Manifest(FORMAT, False, bundle.clip.clip_id, width, dtype, place)
        write_manifest(out, manifest)
        return manifest
    check_clip(out, found, bundle.clip.clip_id, width)
    for name, old, new in (("dtype", found.dtype, dtype), ("folder", found.pictures, place)):
        if old != new:
            raise UserError(
                f"the index in {out} has {name} {old!r}, this command {new!r}: give the same, or "
                "index into another folder"
            )
    return found


def _sort_shards(
    out: Path, manifest: Manifest, found: dict[str, _Picture], shard_rows: int
) -> tuple[dict[int, ShardList], dict[int, ShardList]]:
    """Shards that stay, and shards that are taken apart for the rows that still hold, by number."""
    shards = _whole_shards(out, manifest)
    kept: dict[int, ShardList] = {}
    held: set[str] = set()
    for number, listed in shards.items():
        pictures = _pictures_of(listed)
        if all(found.get(one.name) == one and one.name not in held for one in pictures):
            kept[number] = listed
            held.update(listed.names)
    if len(held) < len(found):
        kept = {number: one for number, one in kept.items() if len(one.names) >= shard_rows}
    return kept, {number: one for number, one in shards.items() if number not in kept}


def _whole_shards(out: Path, manifest: Manifest) -> dict[int, ShardList]:
    """The shards in the folder, by number, of this CLIP and with the array that their list names.

    Those of an earlier run that was killed are in it; damaged ones are left for `_finish`.
    """
    listed_now = {entry.number: entry for entry in manifest.shards}
    shards = {}
    for number in _numbers(out):
        with contextlib.suppress(UserError):
            listed, digest = read_list(out, number)
            entry = listed_now.get(number)
            rows = read_rows(out, manifest, number, listed.rows)[1]
            is_own = listed.clip_id == manifest.clip_id and listed.rows_sha256 == rows
            if is_own and (entry is None or entry.list_sha256 == digest):
                shards[number] = listed
    return shards


def _numbers(out: Path) -> list[int]:
    matches = (_SHARD.fullmatch(entry.name) for entry in out.iterdir())
    return sorted({int(match[1]) for match in matches if match})


def _pictures_of(listed: ShardList) -> list[_Picture]:
    columns = zip(listed.names, listed.sizes, listed.modified, strict=True)
    return [_Picture(*column) for column in columns]


class _Writer:
    """Makes shards of pictures: embeddings that are known are copied, the others computed."""

    def __init__(
        self, encoder: FileEncoder, out: Path, manifest: Manifest, donors: dict[int, ShardList]
    ) -> None:
        self._encoder, self._out, self._manifest = encoder, out, manifest
        self._donors = donors
        self._known = {
            picture: (number, row)
            for number, listed in donors.items()
            for row, picture in enumerate(_pictures_of(listed)[: listed.rows])
        }
        self._rows = lru_cache(8)(self._read_donor)

    def _read_donor(self, number: int) -> np.ndarray:
        return read_rows(self._out, self._manifest, number, self._donors[number].rows)[0]

    def write(self, number: int, pictures: Sequence[_Picture]) -> tuple[ShardEntry, ShardList]:
        """Write a shard of these pictures."""
        new = [picture for picture in pictures if picture not in self._known]
        found_in = self._encoder.encode([picture.name for picture in new])
        made = dict(zip(new, found_in, strict=True))
        rows: dict[_Picture, np.ndarray] = {}
        bad: dict[_Picture, str] = {}
        for picture in pictures:
            found = made.get(picture)
            if isinstance(found, str):
                bad[picture] = found
            elif found is not None:
                rows[picture] = found
            else:
                donor, row = self._known[picture]
                rows[picture] = self._rows(donor)[row]
        array = np.array([*rows.values()], self._manifest.dtype).reshape(-1, self._manifest.width)
        listed = ShardList(
            clip_id=self._manifest.clip_id,
            rows_sha256=hashlib.sha256(pack_rows(array)).hexdigest(),
            names=tuple(picture.name for picture in (*rows, *bad)),
            sizes=tuple(picture.size for picture in (*rows, *bad)),
            modified=tuple(picture.modified for picture in (*rows, *bad)),
            unreadable=tuple(bad.values()),
        )
        return write_shard(self._out, number, array, listed), listed


def _entry(out: Path, number: int, listed: ShardList) -> ShardEntry:
    """Of a shard that is there."""
    return ShardEntry(number, listed.rows, listed.rows_sha256, read_list(out, number)[1])


def _finish(
    out: Path,
    manifest: Manifest,
    entries: dict[int, ShardEntry],
    shards: dict[int, ShardList],
    encoded: int,
) -> Indexed:
    """Put the shards into index.json, and only then delete what it lists no more."""
    bad = [
        pair
        for listed in shards.values()
        for pair in zip(listed.names[listed.rows :], listed.unreadable, strict=True)
    ]
    total = sum(entry.rows for entry in entries.values())
    if not total:
        raise UserError(
            f"none of the {len(bad)} pictures can be read, the first is {printable(bad[0][0])} "
            f"({bad[0][1]}): name another folder"
        )
    ordered = tuple(entries[number] for number in sorted(entries))
    finished = replace(manifest, finished=True, shards=ordered)
    if finished != manifest:
        write_manifest(out, finished)
    for file in list(out.iterdir()):
        match = _SHARD.fullmatch(file.name)
        is_old = match is not None and int(match[1]) not in entries
        if is_old or _SHARD.fullmatch(meant_for(file.name) or ""):
            with contextlib.suppress(OSError):
                file.unlink()
    return Indexed(total, encoded, tuple(sorted(bad)))
