"""What a reference was given and what it said, as one file.

A trace is recorded where torch is installed and read where it is not: arrays by name, and facts as
JSON. Inputs are in it too, noise included, so that nothing has to be drawn twice.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from unclip_jax.errors import UserError
from unclip_jax.files import whole_file
from unclip_jax.interop.tensors import Tensors

FORMAT = 2
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error)


class _Read(dict[str, Any]):
    """What a file holds by name; a name that it lacks is the file's fault."""

    def __init__(self, path: Path, items: dict[str, Any]) -> None:
        super().__init__(items)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self._path} is no whole trace (it lacks {name}): record one again")


@dataclass
class Trace:
    """Filled by a recorder, read by a comparison."""

    kind: str
    """Which reference: karlo, clip, ..."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Plain data: prompts, steps, versions, digests of the weights."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """By names such as 'decoder/block/mid_block.resnets.0'; pictures are NHWC."""

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose name begins with `prefix`, without it, in the order of recording."""
        return {
            name.removeprefix(prefix): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }


def save_trace(trace: Trace, path: Path) -> None:
    """Write the file."""
    header = {
        "format": FORMAT,
        "kind": trace.kind,
        "facts": trace.facts,
        "order": list(trace.arrays),
    }
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    # Names hold characters that a path inside a zip should not: the arrays are numbered.
    numbered: dict[str, Any] = {
        f"a{number}": array for number, array in enumerate(trace.arrays.values())
    }
    with whole_file(path) as scratch, open(scratch, "wb") as file:
        np.savez_compressed(file, header=text, **numbered)


def load_trace(path: Path, kind: str) -> Trace:
    """Read what `save_trace` wrote; raises UserError for another file or kind."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            arrays = {name: file[f"a{number}"] for number, name in enumerate(header["order"])}
        found, version = header["kind"], header["format"]
    except _DAMAGED as error:
        raise UserError(f"{path} is no trace ({error}): record one with --record") from error
    if version != FORMAT or found != kind:
        raise UserError(
            f"{path} is a trace of {found}, format {version}; this needs {kind}, format {FORMAT}: "
            "record it again"
        )
    return Trace(kind, _Read(path, header["facts"]), _Read(path, arrays))


def digests(tensors: Tensors) -> dict[str, str]:
    """16 hex digits for each tensor, of its values as float32, one in memory at a time."""
    return {
        name: hashlib.sha256(np.asarray(tensor.read(), np.float32).tobytes()).hexdigest()[:16]
        for name, tensor in sorted(tensors.items())
    }
