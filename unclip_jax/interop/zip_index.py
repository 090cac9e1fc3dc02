"""Where in a zip archive each of its stored files lies, without extracting any of them.

The archives that torch writes are plain: entries one after the other, not compressed, one central
directory at the end. Only such archives are accepted here, because everything beyond that (entries
that overlap, names that occur twice, sizes that differ between the two headers) serves somebody
who wants two readers to see two different files. Format: PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unclip_jax.errors import UserError

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")

_MOST_ENTRIES = 200_000
_LARGEST_DIRECTORY = 64 * 2**20  # bytes


@dataclass(frozen=True)
class Span:
    """The bytes of one entry."""

    offset: int
    """In the archive."""
    size: int
    is_stored: bool
    """False where they are compressed."""


def index_zip(path: Path) -> dict[str, Span]:
    """Every file of the archive by name, in the directory's order.

    Raises:
        UserError: the file cannot be read, is no zip, is cut off, or lies about its entries.
    """
    try:
        with path.open("rb") as file:
            return _index(file)
    except (OSError, ValueError, struct.error) as error:
        reason = "a header is cut off" if isinstance(error, struct.error) else error
        raise UserError(
            f"{path} is not a sound zip archive ({reason}): restore the file, or save it again"
        ) from error


def _index(file: BinaryIO) -> dict[str, Span]:
    count, size, start = _directory(file)
    if count > _MOST_ENTRIES or size > _LARGEST_DIRECTORY:
        raise ValueError(f"its directory claims {count} entries in {size} bytes")
    file.seek(start)
    directory = file.read(size)
    headers: list[tuple[int, str, int, bool]] = []
    position = 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(directory, position)
        signature, _, _, flags, method = fields[:5]
        packed, plain, name_size, extra_size, comment_size = fields[8:13]
        if signature != b"PK\1\2":
            raise ValueError("its directory is damaged")
        position += _CENTRAL.size
        name = _checked_name(directory[position : position + name_size])
        position += name_size
        extra = directory[position : position + extra_size]
        position += extra_size + comment_size
        plain, packed, offset = _wide(extra, plain, packed, fields[16])
        if flags & 1:
            raise ValueError(f"{name} is encrypted")
        if method == 0 and packed != plain:
            raise ValueError(f"{name} has two sizes")
        headers.append((offset, name, packed, method == 0))
    if position != size:
        raise ValueError("its directory has another length than it claims")
    return _located(file, headers, start)


def _located(
    file: BinaryIO, headers: list[tuple[int, str, int, bool]], directory: int
) -> dict[str, Span]:
    """Reads every entry's own header, which says where its bytes begin."""
    spans: dict[str, Span] = {}
    end = 0
    for offset, name, size, is_stored in sorted(headers):
        if offset < end:
            raise ValueError(f"{name} overlaps another entry")
        file.seek(offset)
        fields = _LOCAL.unpack(file.read(_LOCAL.size))
        signature, method, name_size, extra_size = fields[0], fields[3], fields[9], fields[10]
        own_name = file.read(name_size)
        begin = offset + _LOCAL.size + name_size + extra_size
        end = begin + size
        if signature != b"PK\3\4" or (method == 0) != is_stored:
            raise ValueError(f"{name} has no header of its own")
        if _checked_name(own_name) != name:
            raise ValueError(f"{name} has two names")
        if end > directory:
            raise ValueError(f"{name} reaches beyond its bytes")
        if name in spans:
            raise ValueError(f"{name} occurs twice")
        spans[name] = Span(begin, size, is_stored)
    return {name: spans[name] for _, name, _, _ in headers}


def _directory(file: BinaryIO) -> tuple[int, int, int]:
    """Number of entries, length and offset of the central directory."""
    length = file.seek(0, 2)
    tail_start = max(0, length - _END.size - 0xFFFF)
    file.seek(tail_start)
    tail = file.read()
    found = tail.rfind(b"PK\5\6")
    if found < 0 or found + _END.size > len(tail):
        raise ValueError("it has no directory at its end: it is cut off or something else")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, found)
    if found + _END.size + comment != len(tail) or disk or first_disk or here != count:
        raise ValueError("its directory is damaged")
    end = tail_start + found
    file.seek(max(0, end - _LOCATOR_64.size))
    locator = file.read(_LOCATOR_64.size)
    if locator.startswith(b"PK\6\7"):  # torch writes the wide directory in small files too
        _, _, end, _ = _LOCATOR_64.unpack(locator)
        if end > length:
            raise ValueError("its directory is damaged")
        file.seek(end)
        fields = _END_64.unpack(file.read(_END_64.size))
        wide = fields[7:10]
        narrow = ((count, 0xFFFF), (size, 0xFFFFFFFF), (start, 0xFFFFFFFF))
        if fields[0] != b"PK\6\6" or any(
            n not in (w, limit) for w, (n, limit) in zip(wide, narrow, strict=True)
        ):
            raise ValueError("its directory is damaged")
        count, size, start = wide
    if start + size != end:
        raise ValueError("its directory is not where it should be")
    return count, size, start


def _wide(extra: bytes, plain: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The sizes and the offset, from the 64-bit field where 32 bits do not hold them."""
    if 0xFFFFFFFF not in (plain, packed, offset):
        return plain, packed, offset
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            field = extra[position + 4 : position + 4 + size]
            numbers = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            values = [next(numbers, n) if n == 0xFFFFFFFF else n for n in (plain, packed, offset)]
            return values[0], values[1], values[2]
        position += 4 + size
    raise ValueError("an entry has no size")


def _checked_name(raw: bytes) -> str:
    name = raw.decode("utf-8")
    parts = name.split("/")
    is_path_trick = name.startswith("/") or ".." in parts or "\\" in name or ":" in name
    if is_path_trick or not name or not name.isprintable():
        raise ValueError(f"an entry is called {name!r}")
    return name
