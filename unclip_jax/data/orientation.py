"""Which way up a picture is, from its EXIF or its XMP, without reading anything else of them.

EXIF is a TIFF file without a picture (Exif 2.32, 4.6.2; TIFF 6.0, section 2): a header of 8 bytes,
and at the offset that it names a number of entries of 12 bytes: tag, type, count, and the value or
its offset. Offsets of values are never followed here: the orientation is short enough to lie in its
entry.
"""

from __future__ import annotations

import re
import struct

_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4
_PREFIX = re.compile(rb"(?:Exif\0\0){0,2}")
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def read_turn(exif: bytes, xmp: bytes = b"") -> int:
    """How the picture was stored.

    Args:
        exif: the block, with or without its 'Exif' before the TIFF header; whatever is damaged in
            it says nothing.
        xmp: asked where `exif` does not say.
    Returns:
        1 (upright) to 8 as EXIF counts them; what else is found is given too, and means 1.
    """
    turn = _from_exif(exif)
    if turn is None and (found := _IN_XMP.search(xmp)):
        turn = int(found[1])
    return 1 if turn is None else turn


def _from_exif(block: bytes) -> int | None:
    prefix = _PREFIX.match(block)
    start = prefix.end() if prefix else 0
    order = {b"II": "<", b"MM": ">"}.get(block[start : start + 2])
    if order is None or block[start + 2 : start + 4] not in (b"*\0", b"\0*"):
        return None
    try:
        (offset,) = struct.unpack_from(f"{order}L", block, start + 4)
        (count,) = struct.unpack_from(f"{order}H", block, start + offset)
    except struct.error:
        return None
    first = start + offset + 2
    turn = None
    entries = block[first : first + 12 * count]
    for tag, kind, number, value in struct.iter_unpack(
        f"{order}HHL4s", entries[: len(entries) // 12 * 12]
    ):
        if tag == _ORIENTATION and kind in (_SHORT, _LONG) and number == 1:
            (turn,) = struct.unpack_from(f"{order}{'H' if kind == _SHORT else 'L'}", value)
    return turn
