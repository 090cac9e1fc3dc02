"""torch's archives, read and written without torch: .pt, .pth, .ckpt, .th, .bin.

Since torch 1.6 such a file is a zip archive: `data.pkl` says what there is, every storage is an
entry of its own in `data/`. TorchScript (`torch.jit.save`, OpenAI's CLIP) adds its code, which is
not looked at, and `constants.pkl`. `data.pkl` is read by `restricted_pickle` as data.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.files import whole_file
from unclip_jax.interop.restricted_pickle import Refused, read_pickle, walk
from unclip_jax.interop.tensors import Tensor, Tensors
from unclip_jax.interop.torch_globals import TorchVocabulary
from unclip_jax.interop.torch_storage import STORAGES
from unclip_jax.interop.zip_index import Span, index_zip

_LARGEST_PICKLE = 64 * 2**20  # bytes
_LONGEST_NAMES = 2**24
"""Letters of all of them: a long one can stand before many that are a byte each in the file."""
_OLD_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")


@dataclass(frozen=True)
class Opened:
    """A file of weights."""

    path: Path
    kind: Literal["safetensors", "torch", "torchscript"]
    tensors: Tensors
    """Every tensor; the names of what it is nested in are joined by dots, lists by their index."""
    tree: Any
    """As the file has it: dicts, lists, tuples, plain values, `Tensor` and `Opaque`. A config can
    stand beside the weights."""


def open_torch(path: Path) -> Opened:
    """What the archive holds; the arrays are read when they are asked for.

    Raises:
        UserError: the file is something else or damaged, or names anything but tensors and plain
            data; then nothing of it was executed.
    """
    _refuse_old_formats(path)
    spans = index_zip(path)
    pickles = [name for name in spans if f"/{name}".endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(
            f"{path} is a zip archive with {len(pickles)} data.pkl instead of one, so torch.save "
            "did not write it: give the weights file"
        )
    root = pickles[0].removesuffix("data.pkl")
    is_script = f"{root}constants.pkl" in spans
    try:
        tree = _read(path, spans, root, "data")
        if is_script and not _tensors(tree):  # a frozen module, whose weights have no names
            constants = _read(path, spans, root, "constants")
            tree = {"CONSTANTS": {f"c{number}": value for number, value in enumerate(constants)}}
        return Opened(path, "torchscript" if is_script else "torch", _tensors(tree), tree)
    except Refused as error:
        raise UserError(
            f"{path} was not loaded: {error}; only tensors and plain data are read, so save the "
            "state_dict alone, with torch.save or as safetensors"
        ) from error


def write_torch_archive(path: Path, tree: Any) -> None:
    """Write what `torch.load(path, weights_only=True)` reads.

    The file appears under its name when it is complete; one tensor is in memory at a time.

    Args:
        tree: `Tensors`, or nested dicts, lists and tuples of `Tensor` and plain values.
    Raises:
        ValueError: a dtype or a value that torch's format has no word for.
    """
    program = _Program()
    program.put(tree)
    with whole_file(path) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:
        entries = {
            "data.pkl": program.finished(),
            "byteorder": sys.byteorder.encode(),
            "version": b"3\n",
        }
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
        for number, tensor in enumerate(program.tensors):
            content = np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)
            info = zipfile.ZipInfo(f"archive/data/{number}")
            with archive.open(info, "w", force_zip64=True) as entry:
                entry.write(content.data)
            del content  # or it and the next one are in memory together


class _Program:
    """A pickle of protocol 2, as torch writes it."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._out = io.BytesIO()
        self._out.write(b"\x80\x02")

    def finished(self) -> bytes:
        return self._out.getvalue() + b"."

    def put(self, value: Any) -> None:
        write = self._out.write
        if value is None or isinstance(value, bool):
            write({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif isinstance(value, int):
            content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            write(b"\x8a" + bytes([len(content)]) + content)
        elif isinstance(value, float):
            write(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            content = value.encode()
            write(b"X" + struct.pack("<I", len(content)) + content)
        elif isinstance(value, list | tuple):
            write(b"](" if isinstance(value, list) else b"(")
            for item in value:
                self.put(item)
            write(b"e" if isinstance(value, list) else b"t")
        elif isinstance(value, dict):
            write(b"}(")
            for key, item in value.items():
                self.put(key)
                self.put(item)
            write(b"u")
        elif isinstance(value, Tensor):
            self._put_tensor(value)
        else:
            raise ValueError(f"a torch archive written here cannot hold a {type(value).__name__}")

    def _put_tensor(self, tensor: Tensor) -> None:
        """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
        kinds = [name for name, dtype in STORAGES.items() if dtype == tensor.dtype]
        if not kinds:
            raise ValueError(f"a torch archive written here cannot hold {tensor.dtype}")
        write = self._out.write
        strides = [int(np.prod(tensor.shape[i + 1 :])) for i in range(len(tensor.shape))]
        write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        self.put("storage")
        write(f"ctorch\n{kinds[0].removeprefix('torch.')}\n".encode())
        self.put(str(len(self.tensors)))
        self.put("cpu")
        self.put(int(np.prod(tensor.shape)))
        write(b"tQ")
        self.put(0)
        self.put(tuple(tensor.shape))
        self.put(tuple(strides))
        self.put(False)
        write(b"ccollections\nOrderedDict\n)RtR")
        self.tensors.append(tensor)


def _read(path: Path, spans: dict[str, Span], root: str, name: str) -> Any:
    """One of the archive's pickles."""
    order = _content(path, spans, f"{root}byteorder", 16) or b"little"
    if order not in (b"little", b"big"):
        raise Refused(f"its byte order is {order!r}")
    program = _content(path, spans, f"{root}{name}.pkl", _LARGEST_PICKLE)
    vocabulary = TorchVocabulary(path, spans, f"{root}{name}/", order.decode())
    return read_pickle(program, vocabulary)


def _content(path: Path, spans: dict[str, Span], name: str, most: int) -> bytes:
    span = spans.get(name)
    if span is None:
        return b""
    if not span.is_stored or span.size > most:
        raise Refused(f"its entry {name} is compressed, or has {span.size} bytes")
    with path.open("rb") as file:
        file.seek(span.offset)
        return file.read(span.size)


def _tensors(tree: Any) -> Tensors:
    tensors: Tensors = {}
    letters = 0
    for name, leaf in walk(tree):
        letters += len(name)
        if letters > _LONGEST_NAMES:
            raise Refused("the names of what it holds have no end")
        if isinstance(leaf, Tensor):
            if name in tensors:
                raise Refused(f"it has two tensors called {name[:120]!r}")
            tensors[name] = leaf
    return tensors


def _refuse_old_formats(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): give a file of weights") from error
    if start.startswith(_OLD_MAGIC) or start[257:262] == b"ustar":
        raise UserError(
            f"{path} is in torch's format of before 1.6, which is not read: convert it where torch "
            f"is installed, torch.save(torch.load({path.name!r}, weights_only=True), 'new.pt')"
        )
    if not start.startswith(b"PK\3\4"):
        raise UserError(
            f"{path} is no torch archive (it begins with {start[:8].hex(' ') or 'nothing'}): give "
            "a file that torch.save wrote, or safetensors"
        )
