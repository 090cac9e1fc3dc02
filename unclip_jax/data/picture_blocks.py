"""What of a picture's file Pillow is given: the pixels, and nothing that it would read at a price.

Beside the pixels a file may hold texts, profiles, notes and pictures of other sizes. Pillow reads
them all: it unpacks each profile of a PNG, joins the comments of a GIF and the EXIF of a JPEG piece
by piece, copies every value of an EXIF however often they overlap, and fills an animation's ground
before the size is known. A file of some kilobytes can take minutes or gigabytes that way. So here
the file's blocks are walked once, and what does not belong to the pixels of the first frame is left
out; of the rest the few bytes that matter are kept: EXIF and XMP for the orientation, and a PNG's
clear colour.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

MAX_CHUNKS = 100_000
"""Of a PNG."""
MAX_NOTE = 1 << 20
"""Bytes of EXIF or XMP, unpacked; what is beyond is cut off."""
MAX_EXTENSIONS = 8_000_000
"""Bytes of all extensions before a GIF's first frame."""
MAX_SEGMENTS = 10_000
"""Of a JPEG, before its first scan: 600 MB of notes at 64 kB each."""
MAX_TABLES = 1_000_000
"""Bytes of a JPEG's segments that belong to the pixels; encoders write a thousand."""
MAX_SCANS = 100
"""Of a JPEG; encoders write 10, the most thorough 64."""
MAX_RUN_LENGTH_BYTES = 4_000_000
"""Of a BMP in run lengths: Pillow decodes it in Python, a pixel of a short row at a time."""
MAX_RUN_LENGTH_PIXELS = 8_000_000
MAX_RUN_LENGTH_WIDTH = 65_536
"""A jump of two bytes writes 255 rows."""

_TEXTS = (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Keys of a PNG's texts that may give the orientation."""
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_GIF_BLOCK = re.compile(rb"[!,;]")
_LENGTHLESS = range(0xD0, 0xD8)
_NO_SEGMENTS = {0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)}
_NOTES = {*range(0xE1, 0xEE), 0xEF, 0xFE}
"""APP1 to APP13, APP15 and comments; APP0 and APP14 say how the colours are stored."""


@dataclass(frozen=True)
class Blocks:
    """What is decoded of a file, and what it says beside that."""

    data: bytes
    """The file, with the first frame and little else."""
    exif: bytes = b""
    xmp: bytes = b""
    clear: bytes = b""
    """A PNG's tRNS before its pixels."""
    depth: int = 8
    """Bits of a PNG's samples."""


def read_blocks(data: bytes) -> Blocks:
    """The parts of a picture's file.

    Args:
        data: the whole file, of any format; WebP and what is unknown comes back as it is. Where a
            file is cut off the decoder finds it.
    Raises:
        ValueError: damaged, or beyond one of the bounds above; says which.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"BM"):
        _check_bmp(data)
    return Blocks(data)


def _png(data: bytes) -> Blocks:
    kept: list[tuple[int, int]] = [(0, 8)]
    notes: dict[bytes, tuple[int, int]] = {}  # of equal ones the last, as Pillow has it
    place, chunks, depth, has_pixels = 8, 0, 8, False
    while place + 8 <= len(data):
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise ValueError(f"a PNG of more than {MAX_CHUNKS} chunks")
        kind = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if kind in (b"IDAT", b"IEND") or (kind in (b"IHDR", b"PLTE") and not has_pixels):
            kept.append((place, end))
            has_pixels |= kind == b"IDAT"
            if kind == b"IHDR":
                depth = int.from_bytes(data[place + 16 : place + 17])
        elif kind == b"eXIf" or (kind == b"tRNS" and not has_pixels):
            notes[kind] = place, end
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key = data[place + 8 : min(place + 88, end - 4)].partition(b"\0")[0]
            if key in _TEXTS:
                notes[key] = place, end
        if kind == b"IEND":
            break
        place = end
    raw, profile, xmp = (_text(data, notes, key) for key in _TEXTS)
    exif = _note(data, notes, b"eXIf") or raw or _unhex(profile)
    return Blocks(_join(data, kept), exif, xmp, _note(data, notes, b"tRNS"), depth)


def _join(data: bytes, kept: list[tuple[int, int]]) -> bytes:
    """The kept spans; the file itself, not a copy, where nothing is left out of it."""
    if sum(end - start for start, end in kept) >= len(data):
        return data
    return b"".join(data[start:end] for start, end in kept)


def _note(data: bytes, notes: dict[bytes, tuple[int, int]], key: bytes) -> bytes:
    """What a PNG's chunk holds; empty where there is none."""
    if key not in notes:
        return b""
    place, end = notes[key]
    if zlib.crc32(memoryview(data)[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
        raise ValueError("damaged (the checksum of a chunk does not fit)")
    return data[place + 8 : min(end - 4, place + 8 + MAX_NOTE)]


def _text(data: bytes, notes: dict[bytes, tuple[int, int]], key: bytes) -> bytes:
    """What a PNG says under a key (PNG, third edition, 11.3.3); empty where it is damaged."""
    if key not in notes:
        return b""
    kind = data[notes[key][0] + 4 : notes[key][0] + 8]
    text = _note(data, notes, key)[len(key) + 1 :]
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed = text[:1] == b"\1"
        text = text[2:].split(b"\0", 2)[-1]  # language, translated key, text
    elif is_packed:
        text = text[1:]  # the method
    try:
        return zlib.decompressobj().decompress(text, MAX_NOTE) if is_packed else text
    except zlib.error:
        return b""


def _unhex(text: bytes) -> bytes:
    """ImageMagick's way to write EXIF: an empty line, a name, a length, and digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n", 3)[3:]).decode("ascii"))
    except ValueError:
        return b""


def _jpeg(data: bytes) -> Blocks:
    kept: list[tuple[int, int]] = [(0, 2)]
    exif, xmp, place, tables = b"", b"", 2, 0
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None:
            raise ValueError("damaged (a JPEG without a scan)")
        place, marker = found.start(), data[found.end() - 1]
        if marker in _LENGTHLESS:
            place += 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker < 0xC0 or marker in _NO_SEGMENTS or length < 2:
            raise ValueError("damaged (a JPEG with an unknown segment)")
        if marker == 0xDA:
            _check_scans(data, place)
            kept.append((place, len(data)))
            return Blocks(_join(data, kept), exif, xmp)
        end = place + 2 + length
        if marker not in _NOTES:
            kept.append((place, end))
            tables += length
            if tables > MAX_TABLES:
                raise ValueError(f"a JPEG whose tables have more than {MAX_TABLES} bytes")
        elif marker == 0xE1 and data.startswith(_EXIF, place + 4) and len(exif) < MAX_NOTE:
            exif += data[place + 4 + len(_EXIF) : end]
        elif marker == 0xE1 and data.startswith(_XMP, place + 4):
            xmp = data[place + 4 + len(_XMP) : end]
        place = end
    raise ValueError(f"a JPEG of more than {MAX_SEGMENTS} segments")


def _check_scans(data: bytes, first: int) -> None:
    # Within a scan 0xFF is followed by 0: the marker stands for itself.
    scans = data.count(b"\xff\xda", first)
    if scans > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans} scans, the limit is {MAX_SCANS}")


def _gif(data: bytes) -> Blocks:
    flags = data[10] if len(data) > 10 else 0
    start = place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    clear: int | None = None
    while found := _GIF_BLOCK.search(data, place):  # Pillow passes over what is none of the three
        begin = found.start()
        if data[begin] != ord("!"):
            break
        place = begin + 2
        # A graphic control: its size, flags, a delay of two bytes and the clear colour.
        if data[begin + 1 : begin + 2] == b"\xf9" and data[begin + 2 : begin + 3] >= b"\4":
            control = data[begin + 3 : begin + 7]
            clear = control[3] if len(control) == 4 and control[0] & 1 else clear
        while place < len(data) and data[place]:
            place += 1 + data[place]
            if place - start > MAX_EXTENSIONS:
                raise ValueError(f"a GIF whose extensions have more than {MAX_EXTENSIONS} bytes")
        place += 1
    if found is None or data[found.start()] == ord(";"):
        raise ValueError("damaged (a GIF without a picture)")
    if found.start() == start:
        return Blocks(data)
    control = b"" if clear is None else b"!\xf9\4\1\0\0" + bytes([clear, 0])
    return Blocks(data[:start] + control + data[found.start() :])


def _check_bmp(data: bytes) -> None:
    size, width, height = (int.from_bytes(data[at : at + 4], "little") for at in (14, 18, 22))
    if size < 40 or int.from_bytes(data[30:34], "little") not in (1, 2):  # RLE8, RLE4
        return
    height = min(height, (1 << 32) - height)  # a negative one: from the top
    if (
        len(data) > MAX_RUN_LENGTH_BYTES
        or width > MAX_RUN_LENGTH_WIDTH
        or width * height > MAX_RUN_LENGTH_PIXELS
    ):
        raise ValueError(
            f"a BMP in run lengths with more than {MAX_RUN_LENGTH_BYTES} bytes, "
            f"{MAX_RUN_LENGTH_PIXELS} pixels or {MAX_RUN_LENGTH_WIDTH} a row"
        )
