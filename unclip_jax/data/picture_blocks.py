"""What Pillow does not bound in a picture's file: blocks that cost much time or memory.

Pillow joins the parts of a GIF's comment one by one (2 MB take 12 s), keeps up to 64 MB of a PNG's
unpacked texts, and decodes every scan that a JPEG has, each over all of its pixels.
"""

from __future__ import annotations

MAX_CHUNKS = 100_000
"""Of a PNG."""
MAX_PACKED_TEXTS = 16
"""zTXt and iTXt of a PNG; Pillow unpacks each to at most 1 MiB."""
MAX_COMMENT = 65_536
"""Bytes of comments before a GIF's first frame."""
MAX_EXTENSIONS = 8_000_000
"""Bytes of all extensions before it."""
MAX_SCANS = 100
"""Of a JPEG; encoders write 10, the most thorough 64."""


def refusal(data: bytes) -> str | None:
    """Why a picture is not decoded, or None.

    Args:
        data: the whole file, of any format; only PNG, GIF and JPEG are looked at. A file that is
            damaged is left to the decoder.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    # Within a scan 0xFF is followed by 0: the marker stands for itself.
    if data.startswith(b"\xff\xd8") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        return f"a JPEG of {scans} scans, the limit is {MAX_SCANS}"
    return None


def _png(data: bytes) -> str | None:
    place, chunks, texts = 8, 0, 0
    while place + 8 <= len(data):
        chunks += 1
        texts += data[place + 4 : place + 8] in (b"zTXt", b"iTXt")
        if chunks > MAX_CHUNKS:
            return f"a PNG of more than {MAX_CHUNKS} chunks"
        if texts > MAX_PACKED_TEXTS:
            return f"a PNG of more than {MAX_PACKED_TEXTS} packed texts"
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return None


def _gif(data: bytes) -> str | None:
    flags = data[10] if len(data) > 10 else 0
    start = place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    comments = 0
    while data[place : place + 1] == b"\x21":
        is_comment = data[place + 1 : place + 2] == b"\xfe"
        begin, place = place, place + 2
        while place < len(data) and data[place]:
            place += 1 + data[place]
            if is_comment and comments + place - begin > MAX_COMMENT:
                return f"a GIF whose comments have more than {MAX_COMMENT} bytes"
            if place - start > MAX_EXTENSIONS:
                return f"a GIF whose extensions have more than {MAX_EXTENSIONS} bytes"
        place += 1
        comments += (place - begin) * is_comment
    return None
