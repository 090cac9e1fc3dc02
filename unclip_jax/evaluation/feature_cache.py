"""Features of reference pictures on disk: they are the same every time, and Inception takes a
fifth of a second a picture on two cores.

A table is one .npy file in `features/` of the cache, named by the extractor and the contents of the
pictures, so that it can never be that of other ones.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from unclip_jax.bounded import read_bounded
from unclip_jax.clip_tools.array_file import MAX_ARRAY, pack_rows, unpack_rows
from unclip_jax.data.emoji import cache_root
from unclip_jax.evaluation.counted import counted
from unclip_jax.evaluation.encoders import Say
from unclip_jax.evaluation.features import Extractor, extract_features
from unclip_jax.evaluation.picture_sets import PictureSet
from unclip_jax.files import make_folder, write_whole

_ROOM = 4096
"""Bytes for the header of a file."""


def cached_features(
    extractor: Extractor, pictures: PictureSet, say: Say, cache_dir: str | None = None
) -> tuple[np.ndarray, bool]:
    """The features of a set, from the cache if they are there.

    Args:
        say: told how far it is.
        cache_dir: None is $UNCLIP_CACHE, else ~/.cache/unclip_jax.
    Returns:
        [N, D] float32, and whether they were there. A damaged file is made again; a table of more
        than a gigabyte is not kept.
    Raises:
        UserError: a picture is damaged, or the cache cannot be written.
    """
    shape = (len(pictures), extractor.width)
    path = _path(extractor, pictures, cache_dir)
    try:
        raw = read_bounded(path, MAX_ARRAY)
        return unpack_rows(raw, shape, "float32"), True
    except (OSError, ValueError):
        passing = counted(pictures.pictures(), len(pictures), extractor.name, say)
        features = extract_features(extractor, passing)
    if features.nbytes + _ROOM <= MAX_ARRAY:
        make_folder(path.parent)
        write_whole(path, pack_rows(features))
    return features, False


def _path(extractor: Extractor, pictures: PictureSet, cache_dir: str | None) -> Path:
    name = hashlib.sha256(f"{extractor.key}\n{pictures.digest()}".encode()).hexdigest()
    return cache_root(cache_dir) / "features" / f"{name[:32]}.npy"
