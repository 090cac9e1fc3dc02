"""One file of an embedding store: rows of a source made into tensors, packed, and mapped again.

Tensors of a shard with n rows, which have m captions together (`all_captions` of each, in order):

    embedding       [n, E] float16 or float32, unit norm; zero where the picture cannot be read
    readable        [n] uint8, 0 or 1
    records         [bytes] uint8, a JSON object a row: its name and captions, or why it is bad
    record_ends     [n] int64, where each row's object ends
    caption_ends    [n] int64, where each row's captions end among the m
    token_ids       [ids] uint16 or int32, the captions' ids without padding
    token_ends      [m] int64, where each caption's ids end
    text_embedding  [m, E] as `embedding`; only if asked for

Captions are kept as texts, so that training draws the same ones as from the source; the ids only
save the tokenizer's time. The files are safetensors rather than ArrayRecord: a tensor lies in one
piece, so a row is read through a memory map, with nothing to parse or to decompress.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.captions import EmojiFacts, all_captions
from unclip_jax.data.embedding_manifest import AGAIN, Description, ShardEntry
from unclip_jax.data.images import BadImage
from unclip_jax.data.picture_reader import read_picture
from unclip_jax.data.records import Record, Source
from unclip_jax.errors import UserError

Tensors = dict[str, np.ndarray]


_DTYPES = {"F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8", "U16": "<u2", "U8": "u1"}

Encode = Callable[[np.ndarray], Any]
"""[batch, ...] → [batch, E] float32 of unit norm; may return before the numbers are there."""


@dataclass(frozen=True)
class Encoders:
    """What turns rows into arrays. Batches always have `batch_size` rows, the last ones zeros."""

    image: Encode
    """Of pictures [batch_size, S, S, 3] uint8."""
    text: Encode | None
    """Of tokens [batch_size, L] int32; None stores no text embeddings."""
    tokenize: Callable[[Sequence[str]], np.ndarray]
    """n texts → [n, L] int32, zero padded, never ending in a real id 0."""
    batch_size: int


def make_shard(
    source: Source,
    rows: range,
    made_of: Description,
    encoders: Encoders,
    pool: ThreadPoolExecutor,
    bad: BadRecords,
) -> Tensors:
    """The tensors described above, of some rows of the source.

    Raises:
        UserError: too many pictures cannot be read, or an embedding is not finite.
    """
    size, batch_size = made_of.data.image_size, encoders.batch_size

    def read(index: int) -> tuple[np.ndarray, Record] | BadImage:
        try:
            return read_picture(source, index, size)
        except BadImage as error:
            bad.add(error.name, error.reason, made_of.rows)
            return error

    records: list[dict[str, Any]] = []
    texts: list[str] = []
    caption_ends: list[int] = []
    parts: list[Any] = []
    for first in range(rows.start, rows.stop, batch_size):
        images = np.zeros((batch_size, size, size, 3), np.uint8)
        batch = range(first, min(first + batch_size, rows.stop))
        for place, found in enumerate(pool.map(read, batch)):
            if isinstance(found, BadImage):
                records.append({"name": found.name, "unreadable": found.reason})
            else:
                images[place], record = found
                records.append(record_to_json(record))
                texts += all_captions(record.captions)
            caption_ends.append(len(texts))
        parts.append(encoders.image(images))
        _wait_for_earlier(parts)
    dtype = np.dtype(made_of.dtype)
    readable = np.array(["unreadable" not in record for record in records], np.uint8)
    embedding = np.concatenate([np.asarray(part) for part in parts])[: len(rows)]
    broken = np.flatnonzero(~np.isfinite(embedding).all(axis=1))
    if len(broken):
        raise UserError(
            f"CLIP's embedding of {records[broken[0]]['name']} is not finite: check its weights"
        )
    lines = [json.dumps(record).encode() for record in records]
    tokens = encoders.tokenize(texts)
    ids = [np.trim_zeros(row, "b") for row in tokens]  # the last id is the end of text, never 0
    id_type = np.uint16 if made_of.vocab_size <= 1 << 16 else np.int32
    tensors = {
        "embedding": (embedding * readable[:, None]).astype(dtype),
        "readable": readable,
        "records": np.frombuffer(b"".join(lines), np.uint8),
        "record_ends": _ends(lines),
        "caption_ends": np.array(caption_ends, np.int64),
        "token_ids": np.concatenate([np.zeros(0, np.int32), *ids]).astype(id_type),
        "token_ends": _ends(ids),
    }
    if encoders.text is not None:
        tensors["text_embedding"] = _encode_texts(tokens, encoders, made_of.width).astype(dtype)
    return tensors


def _encode_texts(tokens: np.ndarray, encoders: Encoders, width: int) -> np.ndarray:
    """[m, L] int32 → [m, E] float32 in padded batches."""
    assert encoders.text is not None
    parts: list[Any] = []
    for first in range(0, len(tokens), encoders.batch_size):
        part = tokens[first : first + encoders.batch_size]
        padding = ((0, encoders.batch_size - len(part)), (0, 0))
        parts.append(encoders.text(np.pad(part, padding)))
        _wait_for_earlier(parts)
    empty = np.zeros((0, width), np.float32)
    return np.concatenate([empty, *(np.asarray(part) for part in parts)])[: len(tokens)]


def _wait_for_earlier(parts: list[Any]) -> None:
    """Let a device work on two batches while the next is read, and no more: it holds its inputs."""
    if len(parts) > 2:
        parts[-3] = np.asarray(parts[-3])


def pack_shard(tensors: Tensors, made_of: Description) -> bytes:
    """A shard's file; the same tensors give the same bytes."""
    from safetensors.numpy import save

    # One entry of metadata only: safetensors writes several in an order that changes.
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return save(contiguous, metadata={"job": made_of.job_id})


class ShardFile:
    """A shard mapped into memory.

    Raises:
        UserError: it is missing or not a whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._raw = np.asarray(np.memmap(path, np.uint8, mode="r"))
            self.job_id, self.tensors = _map_tensors(self._raw)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({error}): {AGAIN}") from None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._raw)

    def sha256(self) -> str:
        """Of the file, read once for it."""
        return hashlib.sha256(self._raw.data).hexdigest()


def _map_tensors(raw: np.ndarray) -> tuple[str, Tensors]:
    """The job id and the tensors in the bytes of a safetensors file, without copying."""
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(raw[8:start].tobytes())
    job_id = str(header.pop("__metadata__")["job"])
    tensors, end = {}, start
    for name, item in header.items():
        low, high = (start + offset for offset in item["data_offsets"])
        tensors[name] = raw[low:high].view(_DTYPES[item["dtype"]]).reshape(item["shape"])
        end = max(end, high)
    if end != len(raw):
        raise ValueError(f"{len(raw)} bytes where its header announces {end}")
    return job_id, tensors


def fits(tensors: Tensors, entry: ShardEntry, made_of: Description) -> bool:
    """Whether a shard has the tensors that its entry promises, and ends that lie within them."""
    rows, captions = entry.rows, entry.captions
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (rows, made_of.width),
        "readable": (rows,),
        "record_ends": (rows,),
        "caption_ends": (rows,),
        "token_ends": (captions,),
    }
    if made_of.has_text:
        shapes["text_embedding"] = (captions, made_of.width)
    found = {name: array.shape for name, array in tensors.items()}
    if any(found.get(name) != shape for name, shape in shapes.items()):
        return False
    if len(found.get("records", ())) != 1 or len(found.get("token_ids", ())) != 1:
        return False
    ends = {"record_ends": "records", "caption_ends": "token_ends", "token_ends": "token_ids"}
    steps = {name: np.diff(tensors[name], prepend=0) for name in ends}
    return (
        all(tensors[name].dtype.kind == "i" for name in ends)
        and all((step >= 0).all() for step in steps.values())
        and all(tensors[name][-1:].sum() <= found[whole][0] for name, whole in ends.items())
        and steps["token_ends"].max(initial=0) <= made_of.context_length
    )


def record_to_json(record: Record) -> dict[str, Any]:
    """Name and captions of a record as plain data."""
    if isinstance(record.captions, EmojiFacts):
        return {"name": record.name, "emoji": asdict(record.captions)}
    return {"name": record.name, "captions": list(record.captions)}


def record_from_json(data: dict[str, Any]) -> Record:
    """The inverse of `record_to_json`, with no picture."""
    if "emoji" in data:
        facts = data["emoji"]
        return Record(data["name"], b"", EmojiFacts(**{**facts, "tags": tuple(facts["tags"])}))
    return Record(data["name"], b"", tuple(data["captions"]))


def _ends(items: Sequence[Any]) -> np.ndarray:
    """Where each item ends when they lie one after the other, [len(items)] int64."""
    return np.cumsum([len(item) for item in items], dtype=np.int64)
