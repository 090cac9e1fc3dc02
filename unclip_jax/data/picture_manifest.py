"""manifest.jsonl: a line for every picture of a job, with its SHA-256 and what it was made from.

While a job draws, a line is appended for each picture that is on disk; at the end the file is
written anew, whole and in order. After a kill its lines tell which pictures are finished, also of
those that hold no metadata. A line that is cut off or makes no sense is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from unclip_jax.bounded import parse_json
from unclip_jax.data.provenance import utf8_json, whole_facts
from unclip_jax.files import not_written, write_whole

NAME = "manifest.jsonl"
GRID = "grid.png"
"""All pictures of a folder, or the first, side by side; none of them."""
MAX_LINE = 1_000_000
"""Bytes; longer ones are not ours."""
_OWN = ("path", "sha256", "metadata", "score")
"""What a line says beside the facts."""


class Entry(NamedTuple):
    """What a line says of a file."""

    sha256: str
    facts: bytes
    """SHA-256 of the facts' text."""
    has_metadata: bool


def manifest_line(
    path: str,
    sha256: str,
    facts: Mapping[str, Any],
    *,
    has_metadata: bool,
    score: float | None = None,
) -> dict[str, Any]:
    """The line of a picture.

    Args:
        path: of its file, from the manifest's folder; in a tar, SHARD/MEMBER.
        sha256: of the file, in hex.
        score: CLIP's cosine, where pictures were put in order by it.
    """
    ranked = {} if score is None else {"score": round(score, 6)}
    own = {"path": path, "sha256": sha256, "metadata": has_metadata, **ranked}
    return {**own, **whole_facts(facts)}


def facts_key(facts: Mapping[str, Any]) -> bytes:
    """`Entry.facts` of a picture made from these."""
    return _key(whole_facts(facts))


def read_entries(folder: Path, names: Container[str]) -> dict[str, Entry]:
    """What the manifests in a folder say of these files, by the last part of their paths; later
    lines win."""
    found = {}
    for path in (folder / NAME, *part_paths(folder)):
        for row in _rows(path):
            name = str(row.get("path", "")).rsplit("/", 1)[-1]
            if name in names and (entry := entry_of(row)):
                found[name] = entry
    return found


def entry_of(row: Any) -> Entry | None:
    """Of a line; None if it is not one."""
    if not isinstance(row, dict):
        return None
    sha256, has_metadata = row.get("sha256"), row.get("metadata")
    if not isinstance(sha256, str) or not isinstance(has_metadata, bool):
        return None
    facts = {name: value for name, value in row.items() if name not in _OWN}
    return Entry(sha256, _key(facts), has_metadata)


def part_name(process: int, count: int) -> str:
    """Where one of `count` processes appends its lines: nobody else writes there."""
    return NAME if count == 1 else f".{NAME}-{process:05d}"


def part_paths(folder: Path) -> list[Path]:
    """Where processes that share a job have appended."""
    return sorted(folder.glob(f".{NAME}-[0-9][0-9][0-9][0-9][0-9]"))


def write_manifest(folder: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """The whole manifest, in order, in the place of what was appended.

    Raises:
        UserError: it cannot be written.
    """
    write_whole(folder / NAME, (f"{utf8_json(line)}\n".encode() for line in lines))
    for path in part_paths(folder):
        path.unlink(missing_ok=True)


class ManifestAppender:
    """Appends lines, from any thread; the file is made with the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._lock = threading.Lock()

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            UserError: it cannot be written.
        """
        data = f"{utf8_json(line)}\n".encode()
        with self._lock:
            try:
                if self._file is None:
                    self._file = _open(self._path)
                while data:  # a disk that is nearly full takes a part
                    data = data[self._file.write(data) :]
            except OSError as error:
                raise not_written(self._path, error) from None

    def close(self) -> None:
        """No line can follow."""
        if self._file is not None:
            self._file.close()


def _open(path: Path) -> BinaryIO:
    """At the end, after a line that a kill may have cut off."""
    file = open(path, "a+b", buffering=0)  # noqa: SIM115
    if size := file.seek(0, os.SEEK_END):
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            while line := file.readline(MAX_LINE):
                try:
                    row = parse_json(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
    except OSError:  # there is none yet
        return


def _key(facts: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(facts).encode()).digest()
