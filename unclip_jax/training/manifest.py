"""What a checkpoint must hold, byte for byte: manifest.json, written when all of it is on disk.

Orbax restores flipped bits and zeroed blocks without a word. A checkpoint counts as good when its
manifest is there and every file has the size and the SHA-256 that the manifest says.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from unclip_jax.bounded import parse_json, read_bounded
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole
from unclip_jax.training.sharding import path_name

FILE = "manifest.json"
FORMAT = 2
"""Of the whole checkpoint: what is in it and under which names. Format 1 had no `sha256` of the
manifest itself."""
_OPEN = "0" * 64
_OWN_SUM = re.compile(rb'\A\{\s*"sha256": "([0-9a-f]{64})"')
_LARGEST = 256_000_000
_THREADS = 8
_PIECE = 2**24
"""Bytes hashed at once: between two pieces a thread waits for Python's lock."""


@dataclass(frozen=True)
class Manifest:
    """What was read from manifest.json."""

    files: dict[str, tuple[int, str]]
    """Bytes and SHA-256 of each file, by its path in the checkpoint with '/'."""
    leaves: dict[str, str]
    """dtype and shape of each array of the state, 'float32[3,16]', by its path."""
    loss: float | None
    """Running average of the loss when it was saved."""


def write_manifest(
    folder: Path, leaves: dict[str, str], recipe: dict[str, Any], loss: float | None
) -> None:
    """Describe a checkpoint that is complete; it counts from then on.

    Args:
        recipe: by which it was made, for whoever finds it.
    Raises:
        OSError, UserError: no space is left, or the folder is gone.
    """
    names = sorted(_files(folder))
    hashes = _in_threads(lambda name: _sha256(folder / name), names)
    files = {
        name: [(folder / name).stat().st_size, digest]
        for name, digest in zip(names, hashes, strict=True)
    }
    if loss is not None and not math.isfinite(loss):
        loss = None  # JSON has no name for it
    content = {"sha256": _OPEN, "format": FORMAT, "loss": loss, "recipe": recipe}
    content |= {"leaves": leaves, "files": files}
    text = json.dumps(content, indent=1)
    own = hashlib.sha256(text.encode()).hexdigest()
    write_whole(folder / FILE, text.replace(_OPEN, own, 1).encode())


def read_manifest(folder: Path) -> Manifest | str:
    """The manifest of a checkpoint, or why there is none to be trusted.

    Raises:
        UserError: a later version of the package has written it.
    """
    try:
        if not any(folder.iterdir()):
            return "the folder is empty"
        raw = read_bounded(folder / FILE, _LARGEST)
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (OSError, ValueError) as error:
        return f"{FILE} cannot be read ({error})"
    own = _OWN_SUM.match(raw)
    if own is not None:
        closed = raw[: own.start(1)] + _OPEN.encode() + raw[own.end(1) :]
        if hashlib.sha256(closed).hexdigest().encode() != own[1]:
            return f"{FILE} has changed since its save"
    try:
        content: Any = parse_json(raw)
        version = content["format"]
        if own is not None and version != FORMAT:
            raise UserError(
                f"{folder} has format {version!r}, this version reads {FORMAT}: update the package"
            )
        if own is None and version != 1:
            return f"{FILE} has changed since its save"
        return _checked(content)
    except UserError:
        raise
    except _ODD as error:
        return f"{FILE} cannot be read ({type(error).__name__}: {error})"


_ODD = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading JSON of another kind than ours ends in."""


def _checked(content: Any) -> Manifest:
    files = {str(name): (int(size), str(hashed)) for name, (size, hashed) in _items(content)}
    leaves, loss = dict(content["leaves"]), content["loss"]
    if not files or not all(isinstance(kind, str) for kind in leaves.values()):
        raise ValueError("it names no files, or arrays without a kind")
    if loss is not None and (type(loss) not in (int, float) or not math.isfinite(loss)):
        raise ValueError(f"loss is {loss!r}")
    return Manifest(files, leaves, loss)


def find_missing(folder: Path, manifest: Manifest) -> str | None:
    """The first file that is not there or has another size, and what is wrong; costs no reading."""
    for name, (size, _) in sorted(manifest.files.items()):
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
    return None


def find_damage(folder: Path, manifest: Manifest, part: int = 0, parts: int = 1) -> str | None:
    """The first file whose bytes are not those that were saved, and what is wrong.

    Args:
        part, parts: each of several processes looks at its own share of the files, the larger ones
            spread evenly.
    """
    by_size = sorted(manifest.files, key=lambda name: (-manifest.files[name][0], name))
    names = sorted(by_size[part::parts])

    def damage(name: str) -> str | None:
        try:
            hashed = _sha256(folder / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        return None if hashed == manifest.files[name][1] else f"{name} has changed since its save"

    return next(filter(None, _in_threads(damage, names)), None)


def check_fits(path: Path, manifest: Manifest, abstract: Any) -> None:
    """UserError unless the checkpoint has the arrays of `abstract`; names the first that differ."""
    wanted = describe(abstract)
    tops = {name.split("/")[0] for name in wanted}
    have = {name: kind for name, kind in manifest.leaves.items() if name.split("/")[0] in tops}
    odd = [
        name for name in sorted(wanted.keys() | have.keys()) if wanted.get(name) != have.get(name)
    ]
    if odd:
        first = "; ".join(
            f"{name} is {have.get(name, 'missing')} there and {wanted.get(name, 'unknown')} here"
            for name in odd[:3]
        )
        raise UserError(
            f"checkpoint {path} does not fit the recipe in {len(odd)} arrays: {first}; use the "
            "recipe that made it, or another --workdir"
        )


def describe(abstract: Any) -> dict[str, str]:
    """dtype and shape of each leaf by its path, as 'float32[3,16]'."""
    return {
        path_name(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in RUN/checkpoints, good or not.

    Raises:
        UserError: the folder is there and may not be read.
    """
    try:
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    except PermissionError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): make it readable for who runs this"
        ) from None
    return [int(name) for name in names if _STEP.fullmatch(name)]


_STEP = re.compile("0|[1-9][0-9]{0,17}")


def _items(content: Any) -> Iterable[Any]:
    return content["files"].items()


def _files(folder: Path) -> Iterable[str]:
    for path in folder.rglob("*"):
        if path.is_file() and FILE not in path.name:  # nor its scratch file
            yield path.relative_to(folder).as_posix()


def _in_threads(work: Any, names: list[str]) -> list[Any]:
    """Hashing leaves Python's lock to others, so threads share it out over the cores."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(work, names))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        piece = memoryview(bytearray(min(_PIECE, os.fstat(file.fileno()).st_size + 1)))
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()
