"""The same pictures by torch's DataLoader and by webdataset, as their documentations have it."""

from __future__ import annotations

import glob
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset


def open_loader(
    kind: str, source: str, tokenize: Callable[..., np.ndarray], workers: int, size: int, batch: int
) -> Iterable[tuple[Any, Any]]:
    """Batches of (pictures [B, S, S, 3] uint8, tokens [B, L]), shuffled, one epoch."""
    if kind == "tar":
        return _open_webdataset(source, tokenize, workers, size, batch)
    rows: Any = _Folder(source) if kind == "folder" else _Records(source)
    return DataLoader(
        _Decoded(rows, tokenize, size), batch_size=batch, shuffle=True, num_workers=workers
    )


def decode(data: bytes, size: int) -> torch.Tensor:
    """The shorter side to `size`, antialiased, and the middle of the longer one."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return torch.from_numpy(np.asarray(image.crop((left, top, left + size, top + size))).copy())


class _Folder:
    def __init__(self, folder: str) -> None:
        self._paths = sorted(Path(folder).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[bytes, str]:
        path = self._paths[index]
        return path.read_bytes(), path.with_suffix(".txt").read_text()


class _Records:
    def __init__(self, source: str) -> None:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(source.removeprefix("tfds:"))
        skip = {"image": tfds.decode.SkipDecoding()}
        self._rows = builder.as_data_source(split="train", decoders=skip)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[bytes, str]:
        row = self._rows[index]
        return row["image"], row["caption"].decode()


class _Decoded(Dataset):
    def __init__(self, rows: Any, tokenize: Callable[..., np.ndarray], size: int) -> None:
        self._rows, self._tokenize, self._size = rows, tokenize, size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        data, caption = self._rows[index]
        return decode(data, self._size), torch.from_numpy(self._tokenize([caption])[0])


def _open_webdataset(
    source: str, tokenize: Callable[..., np.ndarray], workers: int, size: int, batch: int
) -> Iterable[tuple[Any, Any]]:
    import webdataset as wds

    def read(sample: tuple[bytes, bytes]) -> tuple[torch.Tensor, torch.Tensor]:
        data, caption = sample
        return decode(data, size), torch.from_numpy(tokenize([caption.decode()])[0])

    shards = sorted(glob.glob(source))
    data: Any = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
    data = data.shuffle(1000).to_tuple("jpg", "txt").map(read).batched(batch)
    return wds.WebLoader(data, batch_size=None, num_workers=workers)
