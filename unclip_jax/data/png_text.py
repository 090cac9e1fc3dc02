"""What a PNG says about itself, read without opening the picture: ten thousand files in a second.

PNG, third edition, 5.2-5.6 and 11.3.3.4: a signature, then chunks (length, type, data, CRC-32 of
type and data), the texts before the pixels here, and an empty IEND chunk as the last 12 bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO

from unclip_jax.bounded import open_regular

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
MAX_TEXT = 1 << 20
"""Bytes of a chunk before the pixels above which a file is not one of ours."""


def read_png_text(path: str | os.PathLike[str], key: str) -> str | None:
    """The uncompressed international text (iTXt) `key` that stands before a PNG's pixels.

    Returns:
        None of a file that is cut off, is damaged where it was read, or has no such text.
    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            return None
        text = _find_text(file, key.encode("latin-1") + b"\0\0\0")
        if text is None or file.seek(0, os.SEEK_END) < len(SIGNATURE) + len(END):
            return None
        file.seek(-len(END), os.SEEK_END)
        return text if file.read() == END else None


def _find_text(file: BinaryIO, start: bytes) -> str | None:
    """Of the first iTXt chunk that begins with `start`: its key, and no compression."""
    while True:
        head = file.read(8)
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"IDAT")
        if kind == b"IDAT" or length > MAX_TEXT:
            return None
        data, checksum = file.read(length), file.read(4)
        if len(checksum) < 4 or zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(checksum):
            return None
        if kind == b"iTXt" and data.startswith(start):
            fields = data[len(start) :].split(b"\0", 2)  # language, translated key, text
            try:
                return fields[2].decode()
            except (IndexError, UnicodeDecodeError):
                return None
