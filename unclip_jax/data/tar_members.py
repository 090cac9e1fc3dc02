"""The members of a tar archive, read from its headers without extracting anything.

Not by `tarfile`, whose offsets a hostile archive can turn backwards (CVE-2025-8194): here they only
grow. Names are given as they are written, bytes that are no UTF-8 as surrogates, so that names that
differ stay different; what they name is never opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

_BLOCK = 512
_MAX_EXTENDED = 1_000_000
"""Bytes of a long name or a PAX header; longer ones are passed over."""
_MAX_NAME = 4096
"""Characters of a name, as of a path on Linux; a member with a longer one is passed over."""
_EXTENDED = b"xLKg"
_MOST_DIGITS = 20  # Python refuses to read numbers of thousands
_OLD_SPARSE = ord("S")


class Span(NamedTuple):
    """Where a member's bytes lie in its archive."""

    offset: int
    size: int


def read_span(file: BinaryIO, span: Span) -> bytes:
    """The bytes of a member."""
    file.seek(span.offset)
    return file.read(span.size)


class TarMembers:
    """The regular files of a tar archive, once from its start.

    `count` says afterwards how many headers it has, `is_cut` that it ends early.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.count = 0
        self.is_cut = False

    def __iter__(self) -> Iterator[tuple[str, Span]]:
        """(name, span) of the members whose bytes are all there."""
        offset, extended = 0, _Extended()
        while True:
            header = read_span(self._file, Span(offset, _BLOCK))
            if header == bytes(_BLOCK):
                return
            parsed = _parse(header) if len(header) == _BLOCK else None
            if parsed is None:
                self.is_cut = True
                return
            name, size, kind = parsed
            # An extended header describes the member after it.
            if kind not in _EXTENDED and extended.size is not None:
                size = extended.size
            start = offset + _BLOCK
            if kind == _OLD_SPARSE and header[482]:
                start = self._skip_sparse_map(start)
            if start + size > self._size:
                self.is_cut = True
                return
            span = Span(start, size)
            offset = start + -(-size // _BLOCK) * _BLOCK
            self.count += 1
            if kind in _EXTENDED:
                if size <= _MAX_EXTENDED:
                    extended = _extend(extended, kind, self._file, span)
                continue
            name = extended.name or name
            if kind in b"0\0" and not extended.is_sparse and len(name) <= _MAX_NAME:
                yield name, span
            extended = _Extended()

    def _skip_sparse_map(self, offset: int) -> int:
        """The end of the blocks that continue an old GNU header's list of holes."""
        while True:
            block = read_span(self._file, Span(offset, _BLOCK))
            offset += _BLOCK
            if len(block) < _BLOCK or not block[504]:
                return offset


@dataclass(frozen=True)
class _Extended:
    """What headers of their own say about the next member."""

    name: str = ""
    size: int | None = None
    is_sparse: bool = False
    """Its bytes are not those of a picture: PAX's way of leaving out holes."""


def _extend(known: _Extended, kind: int, file: BinaryIO, span: Span) -> _Extended:
    if kind == ord("L"):
        name = read_span(file, span).rstrip(b"\0").decode(errors="surrogateescape")
        return _Extended(name, known.size, known.is_sparse)
    return _parse_extended(read_span(file, span), known) if kind == ord("x") else known


def _parse(header: bytes) -> tuple[str, int, int] | None:
    """(name, size, kind) of a 512-byte header, or None where its checksum does not fit."""
    checksum = _number(header[148:156])
    if checksum != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        return None
    size = _number(header[124:136])
    if size is None or size < 0:
        return None
    name = header[:100].split(b"\0")[0].decode(errors="surrogateescape")
    if header[257:262] == b"ustar" and header[257:265] != b"ustar  \0":
        prefix = header[345:500].split(b"\0")[0].decode(errors="surrogateescape")
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


def _parse_extended(data: bytes, known: _Extended) -> _Extended:
    """A PAX header: lines 'LENGTH KEY=VALUE'."""
    name, size, is_sparse = known.name, known.size, known.is_sparse
    place = 0
    while place < len(data):
        digits = data[place : place + _MOST_DIGITS].partition(b" ")[0]
        if not digits.isdigit() or not 0 < int(digits) <= len(data) - place:
            break
        line = data[place + len(digits) + 1 : place + int(digits)]
        key, _, value = line.rstrip(b"\n").partition(b"=")
        if key == b"path":
            name = value.decode(errors="surrogateescape")
        elif key == b"size" and value.isdigit() and len(value) <= _MOST_DIGITS:
            size = int(value)
        is_sparse |= key.startswith(b"GNU.sparse.")
        place += int(digits)
    return _Extended(name, size, is_sparse)
