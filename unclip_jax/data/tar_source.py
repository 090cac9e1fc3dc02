"""Tar shards as img2dataset and webdataset write them, read in place through an index of offsets.

A sample is the members that share a name up to the first dot: `00012.jpg`, `00012.txt` or
`00012.json` (its "caption" or "text"). Nothing is extracted: member names are keys, never paths.
The headers are read here rather than by `tarfile`, whose offsets a hostile archive can turn
backwards (CVE-2025-8194); here they only grow.
"""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unclip_jax.data.images import MAX_BYTES, BadImage
from unclip_jax.data.records import PICTURES, Record, clean_captions
from unclip_jax.errors import UserError

_BLOCK = 512
_MAX_TEXT = 1_000_000
_CAPTIONS = (".txt", ".json")


@dataclass(frozen=True)
class _Span:
    """Where a member's bytes lie in its shard."""

    offset: int
    size: int


@dataclass(frozen=True)
class _Sample:
    shard: str
    key: str
    image: _Span
    caption: _Span
    is_json: bool


class TarSource:
    """The complete samples of all shards that match a pattern, in the order of names and members.

    A shard that was cut off gives the samples before the cut, and that is said on stderr.

    Raises:
        UserError: no shard matches, one is not a tar file, or none has a picture with a caption.
    """

    def __init__(self, pattern: str) -> None:
        path = os.path.expanduser(pattern)
        shards = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
        if not shards:
            raise UserError(f"data.source {pattern!r}: no file matches")
        self._samples = [sample for shard in shards for sample in _index(shard)]
        if not self._samples:
            raise UserError(
                f"data.source {pattern!r}: no picture with a caption in {len(shards)} shards; a "
                f"sample is NAME{PICTURES[1]} and NAME.txt or NAME.json with a caption"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int, /) -> Record:
        sample = self._samples[index]
        name = f"{Path(sample.shard).name}/{sample.key}"
        if sample.image.size > MAX_BYTES or sample.caption.size > _MAX_TEXT:
            raise BadImage(name, "the picture or its caption is too large")
        with open(sample.shard, "rb") as file:
            image = _read(file, sample.image)
            text = _read(file, sample.caption).decode("utf-8-sig", errors="replace")
        captions = clean_captions(_from_json(text) if sample.is_json else text)
        if not captions:
            raise BadImage(name, "no caption")
        return Record(name, image, captions)


def _from_json(text: str) -> object:
    try:
        item = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(item, dict):
        return None
    return next((item[key] for key in ("caption", "text", "captions") if item.get(key)), None)


def _read(file: BinaryIO, span: _Span) -> bytes:
    file.seek(span.offset)
    return file.read(span.size)


def _index(shard: str) -> list[_Sample]:
    samples: dict[str, dict[str, _Span]] = {}
    try:
        size = os.path.getsize(shard)
        with open(shard, "rb") as file:
            walk = _Walk(file, size)
            for name, span in walk.members():
                folder, _, base = name.rpartition("/")
                stem, dot, ending = base.partition(".")
                if stem and dot:
                    key = f"{folder}/{stem}" if folder else stem
                    # The last of several members of one name counts, as when tar extracts.
                    samples.setdefault(key, {})["." + ending.lower()] = span
    except OSError as error:
        raise UserError(f"{shard}: {error.strerror or error}") from None
    if walk.count == 0 and size > 0 and walk.is_cut:
        raise UserError(f"{shard}: not a tar file; unpack a compressed one to .tar first")
    found = [sample for key, parts in samples.items() if (sample := _sample(shard, key, parts))]
    if walk.is_cut:
        print(f"{shard}: ends early, {len(found)} complete samples are used", file=sys.stderr)
    return found


def _sample(shard: str, key: str, parts: dict[str, _Span]) -> _Sample | None:
    image = next((parts[ending] for ending in PICTURES if ending in parts), None)
    caption = next((ending for ending in _CAPTIONS if ending in parts), None)
    if image is None or caption is None:
        return None
    return _Sample(shard, key, image, parts[caption], caption == ".json")


class _Walk:
    """The regular files of a tar archive; `is_cut` says afterwards whether it ended properly."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.count = 0
        self.is_cut = False

    def members(self) -> Iterator[tuple[str, _Span]]:
        """(name, span) of the members whose bytes are all there."""
        offset, long_name, long_size = 0, "", -1
        while True:
            header = _read(self._file, _Span(offset, _BLOCK))
            if header == bytes(_BLOCK):
                return
            parsed = _parse(header) if len(header) == _BLOCK else None
            if parsed is None:
                self.is_cut = True
                return
            name, size, kind = parsed
            # An extended header describes the member after it.
            if kind not in b"xLKg" and long_size >= 0:
                size = long_size
            span = _Span(offset + _BLOCK, size)
            if span.offset + size > self._size:
                self.is_cut = True
                return
            offset = span.offset + -(-size // _BLOCK) * _BLOCK
            self.count += 1
            if kind == ord("L") and size <= _MAX_TEXT:
                long_name = _read(self._file, span).rstrip(b"\0").decode(errors="replace")
            elif kind == ord("x") and size <= _MAX_TEXT:
                long_name, long_size = _parse_extended(_read(self._file, span), long_name)
            elif kind not in b"xLKg":
                if kind in b"0\0":
                    yield long_name or name, span
                long_name, long_size = "", -1


def _parse(header: bytes) -> tuple[str, int, int] | None:
    """(name, size, kind) of a 512-byte header, or None where its checksum does not fit."""
    checksum = _number(header[148:156])
    if checksum != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        return None
    size = _number(header[124:136])
    if size is None or size < 0:
        return None
    name = header[:100].split(b"\0")[0].decode(errors="replace")
    if header[257:262] == b"ustar" and header[257:265] != b"ustar  \0":
        prefix = header[345:500].split(b"\0")[0].decode(errors="replace")
        name = f"{prefix}/{name}" if prefix else name
    return name, size, header[156]


def _number(field: bytes) -> int | None:
    """A number in octal, or in base 256 as GNU tar writes sizes above 8 GiB."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None


def _parse_extended(data: bytes, name: str) -> tuple[str, int]:
    """The path and the size (−1: not given) of a PAX header: lines 'LENGTH KEY=VALUE'."""
    size = -1
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length)].rstrip(b"\n").partition(b"=")
        if key == b"path":
            name = value.decode(errors="replace")
        elif key == b"size" and value.isdigit():
            size = int(value)
        data = data[int(length) :]
    return name, size
