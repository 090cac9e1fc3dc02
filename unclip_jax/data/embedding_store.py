"""CLIP embeddings, captions and token ids of a data set, computed once and read back row by row.

A store is a folder:

    manifest.json            what it was made of (CLIP, tokenizer, data), each shard with its
                             SHA-256, and whether it is finished
    shard-00000.safetensors  rows 0 .. shard_rows - 1 of the source, in the source's order (see
                             `embedding_shard.py`)
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unclip_jax.config import DataConfig, to_dict
from unclip_jax.data.embedding_manifest import (
    AGAIN,
    MANIFEST,
    Manifest,
    StoredData,
    read_manifest,
    shard_path,
    tokenizer_id,
)
from unclip_jax.data.embedding_shard import ShardFile, Tensors, fits, record_from_json
from unclip_jax.data.images import BadImage
from unclip_jax.data.records import Record, Source
from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.errors import UserError

_MAX_OPEN = 256  # a memory map holds a file descriptor, of which a process has about 1,000


def open_store(folder: str | Path) -> EmbeddingStore:
    """A finished store, for reading.

    Raises:
        UserError: there is none, it is not finished, or a shard is missing or of another size.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder} holds no embeddings (no {MANIFEST}): make them with "
            "`unclip embed CLIP --out FOLDER`"
        )
    if not manifest.finished or len(manifest.shards) != manifest.made_of.num_shards:
        raise UserError(f"the embeddings in {folder} are not finished: {AGAIN}")
    for shard, entry in enumerate(manifest.shards):
        path = shard_path(folder, shard)
        if not path.is_file():
            raise UserError(f"{path} is missing: {AGAIN}")
        if path.stat().st_size != entry.bytes:
            raise UserError(f"{path} is damaged (not {entry.bytes} bytes long): {AGAIN}")
    return EmbeddingStore(folder, manifest)


def check_fits(
    store: EmbeddingStore,
    *,
    clip_id: str,
    tokenizer: Tokenizer,
    data: DataConfig,
    source: Source | None = None,
) -> None:
    """A store is of this CLIP and of this data.

    `image_size` may differ: it is what CLIP saw, not what is trained on. With `source`, the data
    may also lie elsewhere than when it was embedded: its length is compared here, and each record
    when it is read.

    Raises:
        UserError: it is not; names what differs.
    """
    made_of, folder = store.made_of, store.folder
    for name, stored, needed in (
        ("CLIP", made_of.clip_id, clip_id),
        ("tokenizer", made_of.tokenizer_id, tokenizer_id(tokenizer)),
    ):
        if stored != needed:
            raise UserError(
                f"the embeddings in {folder} were made with {name} {stored}, this run has "
                f"{needed}: embed the data with the CLIP of this run"
            )
    old, new = to_dict(made_of.data), to_dict(StoredData.of(data))
    for name in old:
        is_free = name == "image_size" or (name == "source" and source is not None)
        if name == "source" and _is_same_place(old[name], new[name]):
            continue
        if not is_free and old[name] != new[name]:
            raise UserError(
                f"the embeddings in {folder} are of data.{name} {old[name]!r}, this run has "
                f"{new[name]!r}: embed that data, or change data.{name}"
            )
    if source is not None and len(source) != len(store):
        raise UserError(
            f"the embeddings in {folder} are of {len(store)} pictures, the data has "
            f"{len(source)}: embed the data again into a new folder"
        )


class EmbeddingStore:
    """The rows of a finished store; safe to read from several threads.

    It is a `Source` too, of records without their pictures. A shard is compared with its SHA-256
    when it is first touched, which reads it once (about 1 GB a second).
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.made_of = manifest.made_of
        self._entries = manifest.shards
        self._verified: set[int] = set()
        self._lock = threading.Lock()
        self._opened = functools.lru_cache(_MAX_OPEN)(self._open)

    @property
    def num_unreadable(self) -> int:
        """Rows whose picture could not be read."""
        return sum(entry.unreadable for entry in self._entries)

    def __len__(self) -> int:
        return self.made_of.rows

    def __getitem__(self, index: int, /) -> Record:
        """Name and captions, with no picture.

        Raises:
            BadImage: the picture could not be read when the store was made.
            UserError: the shard is damaged.
        """
        shard, row = self._find(index)
        try:
            data = json.loads(shard["records"][_span(shard["record_ends"], row)].tobytes())
            if not shard["readable"][row]:
                raise BadImage(str(data["name"]), str(data["unreadable"]))
            return record_from_json(data)
        except BadImage:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"row {index} in {self.folder} is damaged: {AGAIN}") from None

    def embeddings(self, indices: Sequence[int]) -> np.ndarray:
        """Image embeddings [n, E] float32, unit norm; zero where the picture is unreadable."""
        found = np.zeros((len(indices), self.made_of.width), np.float32)
        for place, index in enumerate(indices):
            shard, row = self._find(index)
            found[place] = shard["embedding"][row]
        return self._unit_norm(found)

    def tokens(self, index: int, place: int) -> np.ndarray:
        """Ids [context_length] int32 of a row's caption at `place` among its `all_captions`."""
        shard, row = self._find(index)
        captions = _span(shard["caption_ends"], row)
        ids = shard["token_ids"][_span(shard["token_ends"], captions.start + place)]
        tokens = np.zeros(self.made_of.context_length, np.int32)
        tokens[: len(ids)] = ids
        return tokens

    def text_embeddings(self, index: int) -> np.ndarray:
        """Text embeddings [m, E] float32, unit norm, of a row's `all_captions`.

        Raises:
            UserError: the store has none.
        """
        if not self.made_of.has_text:
            raise UserError(f"{self.folder} has no text embeddings: embed with --text True")
        shard, row = self._find(index)
        found = shard["text_embedding"][_span(shard["caption_ends"], row)]
        return self._unit_norm(found.astype(np.float32))

    def _unit_norm(self, rows: np.ndarray) -> np.ndarray:
        """float32 rows as they are; those that were rounded to float16 are scaled back."""
        if self.made_of.dtype == "float32":
            return rows
        return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)

    def _find(self, index: int) -> tuple[Tensors, int]:
        """The tensors of the shard that holds a row, and the row's place in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number, row = divmod(index, self.made_of.shard_rows)
        with self._lock:
            return self._opened(number), row

    def _open(self, number: int) -> Tensors:
        path, entry = shard_path(self.folder, number), self._entries[number]
        shard = ShardFile(path)
        if number not in self._verified and shard.sha256() != entry.sha256:
            raise UserError(f"{path} is damaged (its SHA-256 is not that of {MANIFEST}): {AGAIN}")
        if not fits(shard.tensors, entry, self.made_of):
            raise UserError(f"{path} does not belong to its {MANIFEST}: restore the folder")
        self._verified.add(number)
        return shard.tensors


def _span(ends: np.ndarray, row: int) -> slice:
    """The places that belong to a row, given where each row ends."""
    return slice(int(ends[row - 1]) if row else 0, int(ends[row]))


def _is_same_place(left: str, right: str) -> bool:
    return os.path.abspath(os.path.expanduser(left)) == os.path.abspath(os.path.expanduser(right))
