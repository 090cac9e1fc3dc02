"""Tar shards as img2dataset and webdataset write them, read in place through an index of offsets.

A sample is the members that share a name up to the first dot: `00012.jpg`, `00012.txt` or
`00012.json` (its "caption" or "text"). Nothing is extracted: member names are keys, never paths.
"""

from __future__ import annotations

import glob
import json
import os
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unclip_jax.data.images import MAX_BYTES, BadImage
from unclip_jax.data.records import MAX_TEXT, PICTURES, Record, clean_captions
from unclip_jax.data.tar_members import Span, TarMembers, read_span
from unclip_jax.errors import UserError
from unclip_jax.printable import printable

_CAPTIONS = (".txt", ".json")
_ABSENT = 255


class TarSource:
    """The complete samples of all shards that match a pattern, in the order of names and members.

    Of several members of one name the last counts, as when tar extracts. A shard that was cut off
    gives the samples before the cut, and that is said on stderr. A million members take 20 s and
    300 MB to index, whatever they are.

    Raises:
        UserError: no shard matches, one is not a tar file, or none has a picture with a caption.
    """

    def __init__(self, pattern: str) -> None:
        path = os.path.expanduser(pattern)
        shards = [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))
        if not shards:
            raise UserError(f"data.source {pattern!r}: no file matches")
        self._shards = [_index(shard) for shard in shards]
        self._ends = np.cumsum([len(shard.keys) for shard in self._shards])
        if not len(self):
            raise UserError(
                f"data.source {pattern!r}: no picture with a caption in {len(shards)} shards; a "
                f"sample is NAME{PICTURES[1]} and NAME.txt or NAME.json with a caption"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Record:
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        row = index - (int(self._ends[number - 1]) if number else 0)
        name = f"{Path(shard.path).name}/{shard.keys[row]}"
        picture, caption = (Span(*map(int, of[row])) for of in (shard.pictures, shard.captions))
        if picture.size > MAX_BYTES or caption.size > MAX_TEXT:
            raise BadImage(name, "the picture or its caption is too large")
        with open(shard.path, "rb") as file:
            image = read_span(file, picture)
            text = read_span(file, caption).decode("utf-8-sig", errors="replace")
        captions = clean_captions(_from_json(text) if shard.is_json[row] else text)
        if not captions:
            raise BadImage(name, "no caption")
        return Record(name, image, captions)


def _from_json(text: str) -> object:
    try:
        item = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(item, dict):
        return None
    return next((item[key] for key in ("caption", "text", "captions") if item.get(key)), None)


@dataclass(frozen=True, eq=False)
class _Shard:
    """The N complete samples of a shard; objects would take five times the memory of arrays."""

    path: str
    keys: list[str]
    pictures: np.ndarray
    """[N, 2] int64: offset and size of each picture."""
    captions: np.ndarray
    """[N, 2] int64: of each caption."""
    is_json: np.ndarray
    """[N] bool: how its caption is written."""


class _Column:
    """Of every key the member with the best of some endings, and of equal ones the last."""

    def __init__(self, endings: Sequence[str]) -> None:
        self._order = {ending: rank for rank, ending in enumerate(endings)}
        self._ranks = bytearray()
        self._spans = array("q")

    def put(self, row: int, ending: str, span: Span) -> None:
        """Take the member for key number `row`, if its ending is one of these."""
        rank = self._order.get(ending, _ABSENT)
        self.grow(row + 1)
        if rank <= self._ranks[row] and rank != _ABSENT:
            self._ranks[row] = rank
            self._spans[2 * row : 2 * row + 2] = array("q", span)

    def grow(self, rows: int) -> None:
        """Have as many rows at least."""
        more = rows - len(self._ranks)
        self._ranks.extend(bytes([_ABSENT]) * more)
        self._spans.extend([0] * (2 * more))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """[N] uint8, the place of the ending or `_ABSENT`; [N, 2] int64, offset and size."""
        spans = np.frombuffer(self._spans, np.int64).reshape(-1, 2)
        return np.frombuffer(bytes(self._ranks), np.uint8), spans


def _index(shard: str) -> _Shard:
    if not os.path.isfile(shard):
        raise UserError(f"{shard}: not a regular file")
    rows: dict[str, int] = {}
    columns = _Column(PICTURES), _Column(_CAPTIONS)
    try:
        with open(shard, "rb") as file:
            members = TarMembers(file)
            for name, span in members:
                folder, _, base = name.rpartition("/")
                stem, dot, ending = base.partition(".")
                if stem and dot:
                    row = rows.setdefault(f"{folder}/{stem}" if folder else stem, len(rows))
                    for column in columns:
                        column.put(row, "." + ending.lower(), span)
            is_empty = file.tell() == 0
    except OSError as error:
        raise UserError(f"{shard}: {error.strerror or error}") from None
    if members.count == 0 and members.is_cut and not is_empty:
        raise UserError(f"{shard}: not a tar file; unpack a compressed one to .tar first")
    (pictures, picture_spans), (captions, caption_spans) = (one.arrays() for one in columns)
    is_whole = (pictures != _ABSENT) & (captions != _ABSENT)
    keys = [key for key, whole in zip(rows, is_whole, strict=True) if whole]
    if members.is_cut:
        said = f"{printable(shard)}: ends early, {len(keys)} complete samples are used"
        print(said, file=sys.stderr)
    is_json = captions[is_whole] == _CAPTIONS.index(".json")
    return _Shard(shard, keys, picture_spans[is_whole], caption_spans[is_whole], is_json)
