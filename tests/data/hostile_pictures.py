"""Pictures from strangers: what each must become, or the words it is refused with.

`python -m tests.data.hostile_pictures SIDE` decodes all in a process of its own and prints as JSON
the words, the seconds and the megabytes that each took. The peak is Linux's VmHWM, reset before
each: `getrusage` would also count what the process was forked from.
"""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Make = Callable[[], bytes]
RED, CLEAR = (200, 10, 20), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, kind: int, pixels: bytes, *extra: bytes) -> bytes:
    """A PNG by hand; `pixels` are its rows without their filter bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    row = len(pixels) // height
    rows = b"".join(b"\0" + pixels[y * row : (y + 1) * row] for y in range(height))
    data = [header, *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(data)


def _deep(kind: int, *channels: int) -> bytes:
    return png(2, 2, 16, kind, struct.pack(f">{len(channels)}H", *channels) * 4)


def _frames(kind: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, "blue")]
    exact = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **exact)


def _clear_palette() -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    return encoded(image, transparency=bytes([255, 0]))


# Every pixel has this colour, give or take 3.
DECODED: dict[str, tuple[Make, tuple[int, int, int]]] = {
    "16-bit gray": (lambda: _deep(0, 32896), (128, 128, 128)),
    "16-bit colour": (lambda: _deep(2, 51400, 2570, 5140), RED),
    "16-bit gray, half clear": (lambda: _deep(4, 0, 32896), (127, 127, 127)),
    "16-bit colour, clear": (lambda: _deep(6, 51400, 2570, 5140, 0), CLEAR),
    "16-bit gray, one value clear": (
        lambda: png(2, 2, 16, 0, struct.pack(">4H", *[257] * 4), chunk(b"tRNS", b"\x01\x01")),
        CLEAR,
    ),
    "gray, one value clear": (lambda: encoded(Image.new("L", (4, 4), 9), transparency=9), CLEAR),
    "colour, one value clear": (
        lambda: encoded(Image.new("RGB", (4, 4), RED), transparency=RED),
        CLEAR,
    ),
    "palette of clear colours": (_clear_palette, CLEAR),
    "CMYK as Adobe inverts it": (
        lambda: encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"),
        (255, 255, 255),
    ),
    "animated GIF": (lambda: _frames("GIF"), RED),
    "animated WebP": (lambda: _frames("WEBP"), RED),
    "animated PNG": (lambda: _frames("PNG"), RED),
    "GIF with a comment": (
        lambda: encoded(Image.new("RGB", (4, 4), RED), "GIF", comment=b"c" * 30_000),
        RED,
    ),
    "texts of 16 blocks": (
        lambda: png(1, 1, 8, 2, bytes(RED), *[chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b"))] * 16),
        RED,
    ),
}


def bomb_png() -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + end


def under_pillows_limit() -> bytes:
    """13,000 squared: 20 KB that Pillow would decode to 483 MB with no more than a warning."""
    return encoded(Image.new("1", (13_000, 13_000)))


def bomb_gif(side: int = 65535, disposal: int = 0) -> bytes:
    whole = encoded(Image.new("P", (4, 4)), "GIF")
    sides = struct.pack("<HH", side, side)
    start = len(gif_head(whole))
    control = b"!\xf9\4" + bytes([disposal << 2, 0, 0, 0, 0])
    picture = whole.index(b",", start)
    at = b"," + bytes(4) + sides + whole[picture + 9 :]
    return whole[:6] + sides + whole[10:start] + control + at


def bomb_apng(side: int) -> bytes:
    """Its first frame asks for a clear ground."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))
    frame = struct.pack(">IIIIIHHBB", 0, side, side, 0, 0, 1, 1, 1, 0)
    parts = header, chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", frame)
    end = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + end


def bomb_webp(side: int = 16_000) -> bytes:
    """An animation of a small frame on a huge canvas."""
    frame = encoded(Image.new("RGB", (4, 4)), "WEBP", lossless=True)[12:]

    def three(number: int) -> bytes:
        return struct.pack("<I", number)[:3]

    canvas = bytes([2, 0, 0, 0]) + three(side - 1) * 2
    place = three(0) * 2 + three(3) * 2 + three(10) + b"\0"
    parts = ((b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", place + frame))
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(part)) + part for kind, part in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def packed(kind: bytes, size: int, times: int = 1) -> bytes:
    key = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    return png(1, 1, 8, 2, bytes(3), *[chunk(kind, key + zlib.compress(bytes(size)))] * times)


def gif_head(whole: bytes) -> bytes:
    return whole[: 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 0x80 else 0)]


def gif_with(label: bytes, blocks: bytes, before: bytes = b"") -> bytes:
    whole = encoded(Image.new("P", (4, 4)), "GIF")
    head = gif_head(whole)
    return head + before + b"\x21" + label + blocks + b"\0" + whole[len(head) :]


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(*segments: bytes) -> bytes:
    whole = encoded(Image.new("RGB", (8, 8), RED), "JPEG")
    return whole[:2] + b"".join(segments) + whole[2:]


def webp_with(kind: bytes, body: bytes) -> bytes:
    """Kind, as of an EXIF, with a body of an even number of bytes."""
    picture = encoded(Image.new("RGB", (4, 4), RED), "WEBP", lossless=True)[12:]
    canvas = bytes([8, 0, 0, 0, 3, 0, 0, 3, 0, 0])
    parts = (b"VP8X", canvas), (kind, body)
    head, tail = (name + struct.pack("<I", len(part)) + part for name, part in parts)
    return (
        b"RIFF"
        + struct.pack("<I", 4 + len(head + picture + tail))
        + b"WEBP"
        + head
        + picture
        + tail
    )


def run_lengths(width: int, body: bytes) -> bytes:
    """A BMP of one row, in RLE8."""
    header = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + bytes(1024) + body


def overlapping(entries: int, size: int) -> bytes:
    """EXIF of many values of `size` bytes that lie in the same place: 20,000 of 200 kB are 4 GB."""
    tags = (tag if tag != 0x112 else 65_000 for tag in range(1, entries + 1))
    body = b"".join(struct.pack(">HHLL", tag, 7, size, 0) for tag in tags)
    block = b"MM\0*" + struct.pack(">LH", 8, entries) + body + bytes(4)
    return block + bytes(max(0, size - len(block)))


def scans(times: int) -> bytes:
    whole = encoded(Image.new("RGB", (64, 64), RED), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * times + b"\xff\xd9"


# The words with which each is refused, in less than 30 MB.
REFUSED: dict[str, tuple[Make, str]] = {
    "PNG of 10^10 pixels": (bomb_png, "too large to decode"),
    "PNG below Pillow's limit": (under_pillows_limit, "13000 × 13000 pixels"),
    "GIF of 65535 squared": (bomb_gif, "too large to decode"),
    "WebP of 16000 squared": (bomb_webp, "too large to decode"),
    "WebP below Pillow's limit": (lambda: bomb_webp(10_000), "10000 × 10000 pixels"),
    "100,001 chunks": (
        lambda: png(1, 1, 8, 2, bytes(3), *[chunk(b"prVt", b"")] * 100_001),
        "100000 chunks",
    ),
    "GIF with 9 MB of extensions": (
        lambda: gif_with(b"\xff", (b"\xff" + bytes([7] * 255)) * 36_000),
        "extensions",
    ),
    "JPEG of 300 scans": (lambda: scans(300), "scans"),
    "JPEG of 10,001 segments": (
        lambda: jpeg_with(*[segment(0xE1, b"Exif\0\0a")] * 10_001),
        "10000 segments",
    ),
    "JPEG of 1000 quantization tables times 16": (
        lambda: jpeg_with(*[segment(0xDB, (b"\0" + b"\1" * 64) * 1000)] * 16),
        "tables",
    ),
    "APNG whose ground is filled first": (lambda: bomb_apng(13_000), "13000 × 13000 pixels"),
    "GIF whose ground is filled first": (lambda: bomb_gif(13_000, 2), "13000 × 13000 pixels"),
    "BMP that jumps 255 rows": (lambda: run_lengths(8_000_000, b"\0\2\0\xff"), "run lengths"),
    "no bytes": (lambda: b"", "empty"),
    "text": (lambda: b"hello " * 100, "not a picture"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "HTML": (lambda: b"<!DOCTYPE html><html><img src='x'></html>", "not a picture"),
    "PDF": (lambda: b"%PDF-1.4", "not a picture"),
    "TIFF": (lambda: encoded(Image.new("RGB", (4, 4)), "TIFF"), "not a picture"),
    "half a PNG": (lambda: encoded(Image.effect_noise((64, 64), 50))[:1000], "damaged"),
    "half a JPEG": (lambda: encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "damaged"),
}


_PROFILE = b"a\0\0" + zlib.compress(bytes(1_000_000))
# Decoded, in less than 30 MB: what is dear lies beside the pixels.
HARMLESS: dict[str, Make] = {
    "zTXt of 30 MB": lambda: packed(b"zTXt", 30_000_000),
    "iTXt of 30 MB": lambda: packed(b"iTXt", 30_000_000),
    "100 zTXt of 1 MB": lambda: packed(b"zTXt", 1_000_000, 100),
    "2000 iCCP of 1 MB": lambda: png(1, 1, 8, 2, bytes(3), *[chunk(b"iCCP", _PROFILE)] * 2000),
    "1000 XMP of 1 MB": lambda: png(
        *(1, 1, 8, 2, bytes(3)),
        *[chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(1_000_000)))] * 1000,
    ),
    "EXIF of 4 GB in a PNG": lambda: png(
        1, 1, 8, 2, bytes(3), chunk(b"eXIf", overlapping(20_000, 200_000))
    ),
    "EXIF of 4 GB in a WebP": lambda: webp_with(b"EXIF", overlapping(20_000, 200_000)),
    "EXIF of 4 GB in a JPEG": lambda: jpeg_with(
        *[
            segment(0xE1, b"Exif\0\0" + overlapping(20_000, 200_000)[at : at + 60_000])
            for at in range(0, 240_000, 60_000)
        ]
    ),
    "multi-picture header of 300 MB": lambda: jpeg_with(
        segment(0xE2, b"MPF\0" + overlapping(5000, 60_000))
    ),
    "GIF with 2 MB of comment": lambda: gif_with(b"\xfe", b"\x01c" * 1_000_000),
    "GIF with 2 MB of comment after a stray byte": lambda: gif_with(
        b"\xfe", b"\x01c" * 1_000_000, before=b"\0"
    ),
}


def memory(name: str) -> float:
    """Megabytes of this process, as Linux calls them: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+)", status)
    return int(found[1]) / 1e3 if found else 0.0


def measure(data: bytes) -> tuple[str, float, float]:
    """Words (none where it is decoded), seconds, and megabytes beyond the file's own."""
    from unclip_jax.data.images import BadImage, decode_image

    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is used now
    before, began, words = memory("VmRSS"), time.monotonic(), ""
    try:
        decode_image(data, name="a")
    except BadImage as error:
        words = str(error)
    return words, time.monotonic() - began, memory("VmHWM") - before


def large(side: int) -> dict[str, bytes]:
    """Pictures in the ways that take most memory a pixel; 8000 is the largest side allowed."""
    flat = Image.new("RGB", (side, side), RED)
    deep = Image.fromarray(np.full((side, side), 300, np.uint16))
    return {
        "large PNG": encoded(flat, compress_level=1),
        "large 16-bit PNG": encoded(deep, compress_level=1),
        "large JPEG": encoded(flat, "JPEG", progressive=True),
        "large WebP": encoded(flat, "WEBP", method=0),
    }


def main() -> None:
    """Prints {name: [words, seconds, megabytes]}."""
    pictures = {name: make() for name, (make, _) in REFUSED.items()}
    pictures |= {name: make() for name, make in HARMLESS.items()}
    pictures |= large(int(sys.argv[1]))
    for kind in ("PNG", "WEBP", "TIFF"):  # Pillow's plug-ins are loaded by the first
        measure(encoded(Image.new("RGB", (4, 4)), kind))
    print(json.dumps({name: measure(data) for name, data in pictures.items()}))


if __name__ == "__main__":
    main()
