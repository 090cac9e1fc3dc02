"""From `DataConfig.source` to the source it names."""

from __future__ import annotations

from unclip_jax.config import DataConfig
from unclip_jax.data.folder_source import FolderSource
from unclip_jax.data.records import Record, Source
from unclip_jax.data.scenes import SceneSource
from unclip_jax.data.tar_source import TarSource
from unclip_jax.data.tfds_source import EmojiSource, TfdsSource
from unclip_jax.errors import UserError

__all__ = ["Record", "Source", "open_source"]


def open_source(config: DataConfig) -> Source:
    """The data that a recipe names; emoji are built first where the cache lacks them.

    Raises:
        UserError: no such source, split or concept; nothing in it that has a picture and a caption.
    """
    if config.source == "emoji":
        return EmojiSource(config)
    if config.source == "scenes":
        return SceneSource(config)
    if config.source.startswith("tfds:"):
        return TfdsSource(config)
    if config.split != "train":
        raise UserError(
            f"data.split is {config.split!r}, but {config.source!r} has only 'train': "
            "give the other split as another data.source"
        )
    if config.source.endswith(".tar") or any(mark in config.source for mark in "*?["):
        return TarSource(config.source)
    return FolderSource(config.source)
