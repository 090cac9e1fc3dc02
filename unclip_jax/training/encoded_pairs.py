"""What a frozen CLIP makes of a data set, batch by batch: for statistics that need one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array

from unclip_jax.config import DataConfig
from unclip_jax.data.embedding_batches import make_embedding_batches
from unclip_jax.data.embedding_store import EmbeddingStore, check_fits, open_store
from unclip_jax.data.pipeline import Tokenize, make_batches
from unclip_jax.data.records import Source
from unclip_jax.data.sources import open_source
from unclip_jax.data.tokenizer import Tokenizer
from unclip_jax.models.clip import CLIP, CLIPConfig
from unclip_jax.training.objectives.conditions import Pairs, encode_pairs

ROWS = 256
"""Rows of a batch."""

ReadPairs = Callable[[Source | EmbeddingStore, DataConfig], Iterator[Pairs]]
"""(pictures and captions, how they are read) → one pass in batches, the last one short."""


def open_pairs(data: DataConfig, clip_id: str, tokenizer: Tokenizer) -> Source | EmbeddingStore:
    """The pictures of a data set, or their stored embeddings where `data` names a store.

    Raises:
        UserError: no such data, or a store of other data or of another CLIP than `clip_id`.
    """
    if data.embeddings is None:
        return open_source(data)
    store = open_store(data.embeddings)
    check_fits(store, clip_id=clip_id, tokenizer=tokenizer, data=data)
    return store


def make_pair_reader(
    clip: CLIPConfig, params: Any, tokenize: Tokenize, *, rows: int = ROWS, shuffle: bool = False
) -> ReadPairs:
    """A function that reads a data set once; compiled once for all the passes it makes.

    Which caption stands for a picture that has several is drawn by its place in the pass, so that
    every pass over the same data, in batches of any size, has the same pairs.

    Args:
        clip, params, tokenize: of the frozen CLIP.
        rows: of a batch; a short one is filled up for the device and cut again.
        shuffle: a fixed random order in place of the data's own.
    Raises:
        UserError: (the function) no pictures, or pictures that cannot be read.
    """
    module = CLIP(clip)

    @jax.jit
    def encode(params: Any, batch: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
        pairs = encode_pairs(module, params, batch)
        return pairs.image, pairs.text, pairs.states, pairs.mask

    def read(source: Source | EmbeddingStore, data: DataConfig) -> Iterator[Pairs]:
        shared: dict[str, Any] = {
            "batch_size": rows,
            "tokenize": tokenize,
            "seed": 0,
            "image_size": data.image_size,
            "threads": data.threads,
            "shuffle": shuffle,
            "repeat": False,
        }
        if isinstance(source, EmbeddingStore):
            batches = make_embedding_batches(source, **shared)
        else:
            batches = make_batches(source, **shared)
        for batch in batches:
            count = len(batch["tokens"])
            whole = {
                name: np.pad(array, [(0, rows - count)] + [(0, 0)] * (array.ndim - 1))
                for name, array in batch.items()
            }
            yield Pairs(*(part[:count] for part in encode(params, whole)))

    return read


def first_pairs(batches: Iterator[Pairs], count: int) -> Iterator[Pairs]:
    """The batches up to row `count`, the last one cut there; no more is read than that."""
    for pairs in batches:
        rows = min(len(pairs.image), count)
        if rows < len(pairs.image):
            parts = (pairs.image, pairs.text, pairs.states, pairs.mask)
            pairs = Pairs(*(part[:rows] for part in parts))
        yield pairs
        count -= rows
        if count == 0:
            return
