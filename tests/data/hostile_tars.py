"""Tar shards from strangers: which samples each must give.

Each case is (make, captions): a function that gives the archive's bytes, and the captions of the
samples that are found in it, in order.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

KINDS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)


def picture(number: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A header and its data, as tarfile writes them."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def sample(key: str, caption: str) -> bytes:
    return member(f"{key}.png", picture()) + member(f"{key}.txt", caption.encode())


def header(name: bytes, size: int = 0, kind: bytes = b"0", *, extended: bool = False) -> bytes:
    """A bare header block; `extended` announces another block of an old GNU list of holes."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = b"%011o\0" % size
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    block[482] = extended
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(lines: bytes) -> bytes:
    return header(b"pax", len(lines), b"x") + lines + bytes(-len(lines) % 512)


def line(key: bytes, value: bytes) -> bytes:
    """A PAX line: its own length, in decimal, counts itself."""
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(b"%d" % size) + len(rest) != size:
        size += 1
    return b"%d" % size + rest


GOOD = sample("good", "good")
_PNG = picture()

CASES: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "a name that climbs": (lambda: sample("../../up", "up") + GOOD, ["up", "good"]),
    "an absolute name": (lambda: sample("/etc/passwd", "abs") + GOOD, ["abs", "good"]),
    "a NUL and escapes in a name": (lambda: sample("a\x1b[31m", "esc") + GOOD, ["esc", "good"]),
    "a symbolic link": (
        lambda: member("a.png", kind=tarfile.SYMTYPE, link="/etc/passwd") + sample("b", "b") + GOOD,
        ["b", "good"],
    ),
    "a hard link": (
        lambda: member("a.png", kind=tarfile.LNKTYPE, link="b.png") + member("a.txt", b"a") + GOOD,
        ["good"],
    ),
    "a device": (
        lambda: member("a.png", kind=tarfile.CHRTYPE) + member("a.txt", b"a") + GOOD,
        ["good"],
    ),
    "a pipe": (
        lambda: member("a.png", kind=tarfile.FIFOTYPE) + member("a.txt", b"a") + GOOD,
        ["good"],
    ),
    "a folder called as a picture": (
        lambda: member("a.png/", kind=tarfile.DIRTYPE) + member("a.txt", b"a") + GOOD,
        ["good"],
    ),
    "a name twice: the last counts": (
        lambda: sample("a", "first") + GOOD + member("a.txt", b"last"),
        ["last", "good"],
    ),
    "a caption twice: .txt before .json": (
        lambda: member("a.json", b'{"caption": "json"}') + sample("a", "text") + GOOD,
        ["text", "good"],
    ),
    "an old sparse file": (
        lambda: (
            header(b"a.png", 512, b"S", extended=True)
            + (bytes(504) + b"\1" + bytes(7) + bytes(512))
            + bytes(512)
            + member("a.txt", b"a")
            + GOOD
        ),
        ["good"],
    ),
    "a sparse file of PAX": (
        lambda: (
            pax(line(b"GNU.sparse.major", b"1") + line(b"GNU.sparse.name", b"a.png"))
            + member("GNUSparseFile.0/a.png", _PNG)
            + member("GNUSparseFile.0/a.txt", b"a")
            + GOOD
        ),
        ["good"],
    ),
    "a size in PAX beyond the end": (
        lambda: GOOD + pax(line(b"size", b"9" * 19)) + sample("a", "a"),
        ["good"],
    ),
    "a size in PAX of thousands of digits": (
        lambda: GOOD + pax(line(b"size", b"9" * 5000)) + sample("a", "a"),
        ["good", "a"],
    ),
    "a length in PAX of thousands of digits": (
        lambda: GOOD + pax(b"9" * 5000 + b" path=x\n") + sample("a", "a"),
        ["good", "a"],
    ),
    "a size that is negative": (
        lambda: GOOD + header(b"a.png")[:124] + b"-0000000001\0" + header(b"a.png")[136:],
        ["good"],
    ),
    "a size of 88 bits": (
        lambda: GOOD + _with_size(b"\x80" + b"\xff" * 11),
        ["good"],
    ),
    "a name of 100 kB": (
        lambda: sample("n" * 100_000, "long") + GOOD,
        ["good"],
    ),
    "a name of GNU that is not UTF-8": (
        lambda: header(b"././@LongLink", 9, b"L") + b"\xff\xfe.png\0\0\0" + bytes(503)
        + header(b"short.png", 512) + bytes(512) + GOOD,
        ["good"],
    ),
    "a header with another checksum": (
        lambda: GOOD + b"b" + member("a.png", _PNG)[1:] + sample("c", "c"),
        ["good"],
    ),
    "no end": (lambda: GOOD, ["good"]),
    "a shard after the end": (lambda: GOOD + bytes(1024) + sample("a", "hidden"), ["good"]),
}  # fmt: skip


def _with_size(field: bytes) -> bytes:
    block = bytearray(header(b"a.png"))
    block[124:136], block[148:156] = field, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def cuts(kind: int) -> Iterator[tuple[bytes, int]]:
    """A shard with long names cut at, before and after every block: bytes, whole samples."""
    out = io.BytesIO()
    ends = []
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for number in range(2):
            folder = "f" * 90 + f"/{'g' * 60}{number}"
            for name, data in ((f"{folder}.png", _PNG), (f"{folder}.txt", b"caption")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            ends.append(out.tell() - 512 + len(b"caption"))
    whole = out.getvalue()
    for block in range(0, ends[-1] + 1024, 512):
        for length in {max(block - 1, 0), block, block + 1}:
            yield whole[:length], sum(length >= end for end in ends)


def write_members(path: Path, count: int) -> None:
    """A shard of empty members, two a sample: headers and nothing else."""
    with path.open("wb") as file:
        for number in range(count // 2):
            file.write(header(b"a/%09d.jpg" % number) + header(b"a/%09d.txt" % number))
        file.write(bytes(1024))
