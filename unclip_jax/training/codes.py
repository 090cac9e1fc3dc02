"""The codes of an autoregressive prior: fitted on a data set, kept beside its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from unclip_jax.config import DataConfig
from unclip_jax.data.embedding_store import EmbeddingStore
from unclip_jax.data.records import Source
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.models.ar_prior import ARPriorConfig
from unclip_jax.models.clip import CLIPConfig
from unclip_jax.models.embedding_codes import CodeConfig, EmbeddingCodes, fit_codes
from unclip_jax.training.encoded_pairs import make_pair_reader

FILE = "codes.safetensors"


def fit_codes_on_data(
    clip: CLIPConfig,
    params: Any,
    tokenize: Any,
    source: Source | EmbeddingStore,
    data: DataConfig,
    config: CodeConfig,
) -> EmbeddingCodes:
    """Codes for the CLIP embeddings of a data set, read twice in its order, 256 pictures at a time.

    Args:
        clip, params, tokenize: of the frozen CLIP.
        source: the pictures, or their embeddings by this CLIP.
    Raises:
        UserError: more components than the data has, or pictures that cannot be read.
    """
    read = make_pair_reader(clip, params, tokenize)

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in read(source, data):
            yield np.asarray(batch.image), np.asarray(batch.text)

    return fit_codes(pairs, config)


def save_codes(codes: EmbeddingCodes, path: Path) -> None:
    """Write the arrays as safetensors, whole or not at all."""
    from safetensors.numpy import save

    arrays = {field.name: np.asarray(getattr(codes, field.name)) for field in fields(codes)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(arrays))


def load_codes(path: Path, model: ARPriorConfig) -> EmbeddingCodes:
    """The codes in a file, checked against the prior that reads them.

    Raises:
        UserError: the file is missing or damaged, or its codes are of another number or width.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
        codes = EmbeddingCodes(**{name: jnp.asarray(array) for name, array in arrays.items()})
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as codes ({error}): make it with `unclip fit-codes`"
        ) from error
    needed = {
        "components": (codes.axes.shape[0], model.components),
        "embedding_width": (codes.axes.shape[1], model.embedding_width),
        "buckets": (codes.edges.shape[1] - 1, model.buckets),
        "dot_buckets": (codes.dot_shares.shape[0], model.dot_buckets),
    }
    for name, (found, expected) in needed.items():
        if found != expected:
            raise UserError(
                f"{path} has {name} {found}, the prior {expected}: "
                f"pass --model.{name.replace('_', '-')} {found}, or fit the codes again"
            )
    return codes
