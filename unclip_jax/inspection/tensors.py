"""Files of weights: safetensors, and PyTorch's archives without torch and without unpickling."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.inspection.findings import Finding, Leaf
from unclip_jax.interop.detect import FORMATS, detect
from unclip_jax.interop.open_file import find_weights, open_file
from unclip_jax.interop.tensors import Tensor, Tensors


def look_at_weights(path: Path, verify: bool) -> Finding:
    """A file of weights, or a folder with one.

    Raises:
        UserError: no such file, or nothing that these readers open.
    """
    opened = open_file(path)
    file = opened.path
    facts: dict[str, Any] = {
        "file": file.name,
        "format": opened.kind,
        "bytes": file.stat().st_size,
        "content": content_of(path),
    }
    extra = {
        str(key): value if isinstance(value, str | int | float | bool) else type(value).__name__
        for key, value in opened.tree.items()
        if not isinstance(value, Tensor)
    }
    if extra and opened.kind != "safetensors":
        facts["holds beside tensors"] = dict(list(extra.items())[:20])
    problems: list[str] = []
    if verify:
        facts["sha256"] = sha256(file)
        problems = find_not_finite(opened.tensors)
    return Finding("weights", facts, leaves_of(opened.tensors), tuple(problems))


def content_of(path: Path) -> str:
    """Which known network, if it is one."""
    try:
        return FORMATS[detect(path)]
    except UserError:
        return "no network that this package imports"


def has_weights(folder: Path) -> bool:
    """Whether `look_at_weights` finds one file of weights in the folder."""
    try:
        find_weights(folder)
    except UserError:
        return False
    return True


def leaves_of(tensors: Tensors) -> dict[str, Leaf]:
    """Shapes and types, from the file's header alone."""
    return {
        name: Leaf(tensor.shape, str(tensor.dtype), _bytes(tensor))
        for name, tensor in tensors.items()
    }


def described_leaves(leaves: Mapping[str, Any]) -> dict[str, Leaf]:
    """Those of a manifest, 'float32[3,16]' by name; what is written otherwise is left out."""
    found = {}
    for name, text in leaves.items():
        dtype, sign, rest = str(text).partition("[")
        sizes = [size for size in rest.removesuffix("]").split(",") if size]
        is_sound = sign and all(size.isdecimal() and len(size) < 12 for size in sizes)
        if is_sound:
            shape = tuple(map(int, sizes))
            leaf = Leaf(shape, dtype, 0)
            found[name] = Leaf(shape, dtype, leaf.size * _WIDTHS.get(dtype, 4))
    return found


_WIDTHS = {"bfloat16": 2, "float16": 2, "float64": 8, "int64": 8, "int8": 1, "uint8": 1, "bool": 1}
"""Bytes of an element where they are not 4."""


def find_not_finite(tensors: Tensors) -> list[str]:
    """What is wrong with the numbers; every array is read, one at a time."""
    found = []
    for name, tensor in tensors.items():
        if "float" not in str(tensor.dtype):
            continue
        array = tensor.read()
        # numpy has no such test for bfloat16 and smaller types.
        native = array if array.dtype.kind == "f" else array.astype(np.float32)
        odd = int(np.count_nonzero(~np.isfinite(native)))
        if odd:
            found.append(f"{name} has {odd:,} of {array.size:,} numbers that are not finite")
    return found


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=object)) * tensor.dtype.itemsize
