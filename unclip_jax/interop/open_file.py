"""Opens weights by what is in the file, whatever it is called; in a folder, the one weights file.

Published weights come as safetensors, in one file or in shards with an index, and as torch
archives under many endings.
"""

from __future__ import annotations

import struct
from pathlib import Path

from unclip_jax.errors import UserError
from unclip_jax.interop.safetensors_file import open_safetensors, open_sharded
from unclip_jax.interop.tensors import Tensors
from unclip_jax.interop.torch_archive import Opened, open_torch

_USUAL_NAMES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""What hubs call the weights, safetensors first."""
_ENDINGS = (
    (".index.json",),
    (".safetensors",),
    (".bin", ".pt", ".pth", ".ckpt", ".th"),
)
"""Of other names, in this order."""


def open_file(path: Path) -> Opened:
    """Names, shapes and dtypes of a file or of the weights file in a folder.

    Raises:
        UserError: there is none, there are several, or it cannot be read.
    """
    if path.is_dir():
        path = find_weights(path)
    start = _beginning(path)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the weights: run git lfs pull")
    has_header = start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= path.stat().st_size
    if has_header or path.suffix == ".safetensors":
        tensors = open_safetensors(path)
    elif _is_index(start):
        tensors = open_sharded(path, _open_part)
    else:
        return open_torch(path)
    return Opened(path, "safetensors", tensors, dict(tensors))


def _open_part(path: Path) -> Tensors:
    """A shard; an index among the shards of an index would have no end."""
    if not path.is_file():
        raise UserError(f"{path} is missing: restore the file")
    if _is_index(_beginning(path)):
        raise UserError(f"{path} is an index inside an index: restore the files")
    return open_file(path).tensors


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): give a file of weights") from error


def _is_index(start: bytes) -> bool:
    return start.lstrip().startswith(b"{")


def find_weights(folder: Path) -> Path:
    """The weights file of a folder: by the usual names, else the only one there is.

    Raises:
        UserError: there is none, or several under names of their own.
    """
    for name in _USUAL_NAMES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for endings in _ENDINGS:
        found = [path for path in files if path.name.endswith(endings)]
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:4]) + (", ..." if found[4:] else "")
            raise UserError(f"{folder} has several weights files ({names}): give one of them")
        if found:
            return found[0]
    raise UserError(f"{folder} has no weights file: give a folder with {_USUAL_NAMES[0]} or a file")
