"""What an embedding store says about itself: manifest.json (see `embedding_store.py`)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from unclip_jax.bounded import read_json
from unclip_jax.config import DataConfig, from_dict, to_dict
from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
AGAIN = "run the same `unclip embed` again, it writes what is missing or damaged"
"""The remedy for a store that is not whole."""


@dataclass(frozen=True)
class StoredData:
    """The fields of `DataConfig` that decide which rows there are and what CLIP saw of them."""

    source: str
    split: str
    image_size: int
    concepts: tuple[str, ...]
    variants: bool
    image_key: str
    caption_key: str

    @classmethod
    def of(cls, config: DataConfig) -> StoredData:
        """These fields of a recipe's data."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Description:
    """What a store is made of. Equal descriptions give equal stores."""

    clip_id: str
    """`weights_id` of the CLIP."""
    tokenizer_id: str
    data: StoredData
    rows: int
    """Records of the source, unreadable ones included."""
    width: int
    """Of an embedding."""
    context_length: int
    """Tokens of a caption, padding included."""
    vocab_size: int
    dtype: Literal["float16", "float32"]
    has_text: bool
    """Text embeddings of all captions are stored too."""
    shard_rows: int
    """Rows of every shard but the last."""

    @property
    def num_shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    @property
    def job_id(self) -> str:
        """16 hex digits, kept in each shard, so that no shard gets into another store."""
        text = json.dumps(to_dict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def shard_range(self, shard: int) -> range:
        """The rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest lists it."""

    rows: int
    captions: int
    unreadable: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says; `shards` is empty until the store is finished."""

    format: int
    finished: bool
    made_of: Description
    shards: tuple[ShardEntry, ...] = ()


def tokenizer_id(tokenizer: Tokenizer) -> str:
    """16 hex digits that name a tokenizer."""
    text = json.dumps(tokenizer.to_json(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{shard:05d}.safetensors"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a store, or None where the folder has none.

    Raises:
        UserError: it cannot be read, or is of another version.
    """
    path = folder / MANIFEST
    try:
        data = read_json(path, 64_000_000)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or embed anew") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}: embed the data anew")
    try:
        manifest = from_dict(Manifest, data)
    except UserError as error:
        raise UserError(f"{path}: {error}; restore it, or embed anew") from None
    made_of = manifest.made_of
    if min(made_of.rows, made_of.width, made_of.context_length, made_of.shard_rows) < 1:
        raise UserError(f"{path}: a size is below 1; restore it, or embed anew")
    return manifest
