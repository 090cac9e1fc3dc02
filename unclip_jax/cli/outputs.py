"""Where the pictures of a job go: files of a folder, or members of tar shards.

Both answer the same questions: which pictures are there, which of the others a host draws, what
writes them, and what was written.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.bounded import parse_json
from unclip_jax.data.images import BadImage, decode_image, picture_bytes
from unclip_jax.data.picture_manifest import (
    Entry,
    entry_of,
    facts_key,
    manifest_line,
    part_name,
    read_entries,
)
from unclip_jax.data.provenance import utf8_json
from unclip_jax.data.tar_members import Span, read_span
from unclip_jax.data.tar_shards import read_members, shard_name, write_shard
from unclip_jax.errors import UserError
from unclip_jax.samples import (
    OTHER,
    SAME,
    PictureWriter,
    file_digest,
    find_pictures,
    find_scratch,
)

Line = dict[str, Any]
UNPACKED = ".unpacked"
"""Folder of pictures that are not in a tar yet."""


class PictureFolder:
    """PNGs in a folder.

    Args:
        names: of the files, in order.
        facts_of: number → what the picture is made from.
        manifests: the folder of the manifest; None is `out`.
    """

    def __init__(
        self,
        out: Path,
        names: Sequence[str],
        facts_of: Callable[[int], dict[str, Any]],
        *,
        has_metadata: bool,
        manifests: Path | None = None,
    ) -> None:
        self.out, self.names, self._facts_of = out, names, facts_of
        self._has_metadata = has_metadata
        self._manifests = manifests or out

    def find(self) -> np.ndarray:
        """[N] int8, see `find_pictures`."""
        entries = None if self._has_metadata else read_entries(self._manifests, set(self.names))
        return find_pictures(self.out, self.names, self._facts_of, entries)

    def scratch(self, others: Sequence[str]) -> list[Path]:
        """Unfinished files of the pictures and of `others`."""
        return find_scratch(self.out, {*self.names, *others})

    def share(self, missing: np.ndarray, process: int, count: int) -> np.ndarray:
        """The numbers among `missing` that one of `count` processes draws."""
        return missing[process::count]

    def writer(self, process: int, count: int, on_written: Callable[[Line], None]) -> PictureWriter:
        """What writes a process's share."""
        return PictureWriter(
            self.out,
            has_metadata=self._has_metadata,
            manifest=self.out / part_name(process, count),
            on_written=on_written,
        )

    def gone(self) -> list[str]:
        """Names of the pictures that are not there."""
        listed = _listed(self.out)
        return [
            name for name in self.names if name not in listed and not (self.out / name).exists()
        ]

    def lines(self, numbers: Iterable[int]) -> Iterator[Line]:
        """The manifest's lines of pictures that are there."""
        entries = read_entries(self._manifests, set(self.names))
        for number in numbers:
            name, facts = self.names[number], self._facts_of(number)
            entry = entries.get(name)
            if entry and entry.facts == facts_key(facts):
                digest = entry.sha256
            else:  # drawn where its line was lost
                digest = file_digest(self.out / name)
            yield manifest_line(name, digest, facts, has_metadata=self._has_metadata)

    def picture(self, number: int) -> np.ndarray:
        """[H, W, 3] uint8.

        Raises:
            UserError: it cannot be read.
        """
        path = self.out / self.names[number]
        return _decode(lambda: picture_bytes(path), path)

    def close(self) -> None:
        """All is there: what was in the way of work goes."""


class TarShards(PictureFolder):
    """Shards of so many pictures, each written when its last picture is there.

    Until then its pictures wait in a folder of their own, so that a kill costs none of them. All
    pictures of a shard are drawn by one process.
    """

    def __init__(
        self,
        out: Path,
        names: Sequence[str],
        facts_of: Callable[[int], dict[str, Any]],
        *,
        has_metadata: bool,
        size: int,
    ) -> None:
        super().__init__(out, names, facts_of, has_metadata=has_metadata)
        self._size = size
        self._waiting = PictureFolder(
            out / UNPACKED, names, facts_of, has_metadata=has_metadata, manifests=out
        )
        self._numbers = {name: number for number, name in enumerate(names)}
        self._left: dict[int, int] = {}
        """Of each shard that is not whole, the pictures that are not there."""
        self._lock = threading.Lock()
        self._members: dict[int, dict[str, Span]] = {}

    @property
    def _count(self) -> int:
        return -(-len(self.names) // self._size)

    def _numbers_of(self, shard: int) -> range:
        return range(shard * self._size, min((shard + 1) * self._size, len(self.names)))

    def _path(self, shard: int) -> Path:
        return self.out / shard_name(shard)

    def find(self) -> np.ndarray:
        """As for a folder; a shard is as asked if all in it is."""
        found = self._waiting.find()
        for shard in range(self._count):
            numbers = self._numbers_of(shard)
            part = found[numbers.start : numbers.stop]
            if self._is_whole(shard):
                part[:] = SAME
            elif self._path(shard).exists():
                part[part != SAME] = OTHER
        return found

    def scratch(self, others: Sequence[str]) -> list[Path]:
        """Of pictures, shards and `others`."""
        shards = [shard_name(shard) for shard in range(self._count)]
        own = find_scratch(self.out, {*shards, *others})
        return own + self._waiting.scratch(())

    def share(self, missing: np.ndarray, process: int, count: int) -> np.ndarray:
        """The missing pictures of every `count`-th shard."""
        return missing[missing // self._size % count == process]

    def writer(self, process: int, count: int, on_written: Callable[[Line], None]) -> PictureWriter:
        """Writes pictures, and the shards that they complete."""
        self._pack_complete(process, count)

        def note(line: Line) -> None:
            number = self._numbers[line["path"]]
            on_written({**line, "path": self._label(number)})
            with self._lock:
                self._left[number // self._size] -= 1
                is_last = not self._left[number // self._size]
            if is_last:
                self._pack(number // self._size)

        return PictureWriter(
            self._waiting.out,
            has_metadata=self._has_metadata,
            manifest=self.out / part_name(process, count),
            on_written=note,
        )

    def gone(self) -> list[str]:
        """Names of the shards that are not there."""
        paths = [self._path(shard) for shard in range(self._count)]
        return [path.name for path in paths if not path.exists()]

    def lines(self, numbers: Iterable[int]) -> Iterator[Line]:
        """The manifest's lines, from the shards."""
        for number in numbers:
            entry = entry_of(self._told(number))
            if entry is None:
                raise UserError(
                    f"{self._path(number // self._size)} has no {self.names[number]}: delete the "
                    "file and run the same command again"
                )
            facts, label = self._facts_of(number), self._label(number)
            yield manifest_line(label, entry.sha256, facts, has_metadata=self._has_metadata)

    def picture(self, number: int) -> np.ndarray:
        """[H, W, 3] uint8, from its shard."""
        label = Path(self._label(number))
        return _decode(lambda: self._member(number, "png"), self.out / label)

    def close(self) -> None:
        """The folder of what waited is empty."""
        for name in _listed(self._waiting.out):  # a kill may have come between tar and these
            if name in self._numbers:
                (self._waiting.out / name).unlink(missing_ok=True)
        if self._waiting.out.is_dir() and not os.listdir(self._waiting.out):
            self._waiting.out.rmdir()

    def _label(self, number: int) -> str:
        return f"{shard_name(number // self._size)}/{self.names[number]}"

    def _is_whole(self, shard: int) -> bool:
        """Whether a shard is there and holds what is asked for, and nothing else."""
        numbers = self._numbers_of(shard)
        try:
            members = self._members_of(shard)
            wanted = [f"{_key(self.names[n])}.{end}" for n in numbers for end in _ENDINGS]
            if list(members) != wanted:
                return False
            return all(self._is_same(entry_of(self._told(n)), n) for n in numbers)
        except OSError:
            return False
        finally:
            self._members.clear()

    def _is_same(self, entry: Entry | None, number: int) -> bool:
        return (
            entry is not None
            and entry.has_metadata == self._has_metadata
            and entry.facts == facts_key(self._facts_of(number))
        )

    def _pack_complete(self, process: int, count: int) -> None:
        """Count what this process's shards lack, and write those that lack nothing."""
        found = self._waiting.find()
        for shard in range(process, self._count, count):
            numbers = self._numbers_of(shard)
            left = int((found[numbers.start : numbers.stop] != SAME).sum())
            self._left[shard] = left
            if not left and not self._is_whole(shard):
                self._pack(shard)

    def _pack(self, shard: int) -> None:
        """Write a shard of the pictures that wait, which are then done."""
        numbers = self._numbers_of(shard)

        def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
            for number in numbers:
                path, facts = self._waiting.out / self.names[number], self._facts_of(number)
                data = path.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                own = manifest_line(path.name, digest, facts, has_metadata=self._has_metadata)
                prompt = facts["prompt"].encode(errors="backslashreplace")
                parts = (data, prompt, utf8_json(own).encode())
                yield _key(path.name), dict(zip(_ENDINGS, parts, strict=True))

        write_shard(self._path(shard), samples())
        for number in numbers:
            (self._waiting.out / self.names[number]).unlink(missing_ok=True)

    def _members_of(self, shard: int) -> dict[str, Span]:
        """Of the shard that was asked for last, too."""
        if shard not in self._members:
            self._members = {shard: read_members(self._path(shard))}
        return self._members[shard]

    def _member(self, number: int, ending: str) -> bytes:
        shard = number // self._size
        span = self._members_of(shard).get(f"{_key(self.names[number])}.{ending}")
        if span is None:
            return b""
        with self._path(shard).open("rb") as file:
            return read_span(file, span)

    def _told(self, number: int) -> Any:
        """What the shard says of a picture."""
        try:
            return parse_json(self._member(number, "json"))
        except ValueError:
            return None


_ENDINGS = ("png", "txt", "json")


def _listed(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _key(name: str) -> str:
    return name.removesuffix(".png")


def _decode(read: Callable[[], bytes], path: Path) -> np.ndarray:
    try:
        return decode_image(read(), name=str(path))
    except OSError as error:
        raise UserError(f"no grid: {path} cannot be read ({error.strerror})") from error
    except BadImage as error:
        raise UserError(f"{error}: delete it and run the same command again") from None
