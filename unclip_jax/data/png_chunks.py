"""The chunks of a PNG and its texts, of whatever program wrote them; nothing is drawn.

PNG, third edition, 5.3 and 11.3.3: tEXt is Latin-1, zTXt is compressed Latin-1, iTXt is UTF-8 and
may be compressed.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from unclip_jax.data.png_text import SIGNATURE

MAX_TEXT = 1 << 20
"""Bytes of a text, decompressed; what is beyond is cut off."""
MAX_TEXTS = 16 << 20
"""Bytes of all texts; those after it are counted and not read."""
MAX_CHUNKS = 100_000


@dataclass(frozen=True)
class PngChunks:
    """What a PNG consists of."""

    counts: dict[str, int] = field(default_factory=dict)
    """How many there are of each type."""
    texts: dict[str, str] = field(default_factory=dict)
    """The last text of each key."""
    damage: str = ""
    """The first thing that is wrong: a checksum, or an end that is missing."""


def read_png_chunks(data: bytes) -> PngChunks:
    """The chunks of a file's bytes, as far as it is whole; every checksum is compared."""
    counts: dict[str, int] = {}
    texts: dict[str, str] = {}
    offset, left = len(SIGNATURE), MAX_TEXTS
    for _ in range(MAX_CHUNKS):
        if len(data) - offset < 12:
            break
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 12 + length
        if end > len(data):
            return PngChunks(counts, texts, "it is cut off")
        name = kind.decode("latin-1")
        body = data[offset + 8 : end - 4]
        if zlib.crc32(body, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end]):
            return PngChunks(counts, texts, f"the checksum of a chunk {name} does not fit")
        counts[name] = counts.get(name, 0) + 1
        if name in ("tEXt", "zTXt", "iTXt") and left > 0:
            key, text = _text(name, body)
            texts[key] = text
            left -= len(text) + len(key)
        offset = end
        if name == "IEND":
            return PngChunks(counts, texts)
    return PngChunks(counts, texts, "its end is missing")


def _text(kind: str, body: bytes) -> tuple[str, str]:
    key, _, rest = body.partition(b"\0")
    coding, is_packed = "latin-1", kind == "zTXt"
    if is_packed:
        rest = rest[1:]  # the method
    if kind == "iTXt":
        coding, is_packed = "utf-8", rest[:1] == b"\1"
        rest = rest[2:].split(b"\0", 2)[-1]  # language, translated key, text
    if is_packed:
        rest = _unpack(rest)
    return key.decode("latin-1"), rest[:MAX_TEXT].decode(coding, errors="backslashreplace")


def _unpack(data: bytes) -> bytes:
    """At most `MAX_TEXT` bytes: a kilobyte can be made to hold a megabyte."""
    try:
        return zlib.decompressobj().decompress(data, MAX_TEXT)
    except zlib.error:
        return b"(damaged)"
