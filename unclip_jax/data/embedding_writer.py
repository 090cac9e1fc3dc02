"""Writes an embedding store (see `embedding_store.py`), shard after shard; run again, it goes on.

A shard appears whole or not at all, and its bytes depend on its own rows alone: so a killed run
continues with the first shard that is missing, and process p of P writes the shards p, p + P, ...
without talking to the others. The last one to finish finds all shards there and completes the
manifest.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from unclip_jax.config import to_dict
from unclip_jax.data.bad_records import BadRecords
from unclip_jax.data.embedding_manifest import (
    FORMAT,
    MANIFEST,
    Description,
    Manifest,
    ShardEntry,
    read_manifest,
    shard_path,
)
from unclip_jax.data.embedding_shard import Encoders, ShardFile, make_shard, pack_shard
from unclip_jax.data.records import Source
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole


def write_store(
    folder: Path,
    source: Source,
    made_of: Description,
    encoders: Encoders,
    *,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 4,
    bad: BadRecords | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write what is missing of this process's shards, then the manifest if all shards are there.

    Args:
        bad: where pictures that cannot be read are counted; too many stop the run.
        say: told of the progress, a line at a time.
    Returns:
        the manifest, unfinished where shards of other processes are missing.
    Raises:
        UserError: the folder holds another store or other files, or cannot be written.
    """
    manifest = _claim(folder, made_of)
    is_damaged = _remove_damaged(folder, manifest)
    mine = range(process_index, made_of.num_shards, process_count)
    missing = [shard for shard in mine if not _is_whole(folder, shard, made_of)]
    if manifest.finished and not missing and not is_damaged:
        return manifest
    kept = len(mine) - len(missing)
    if kept:
        say(f"{kept} of {len(mine)} shards are there already")
    began, done = time.monotonic(), 0
    total = sum(len(made_of.shard_range(shard)) for shard in missing)
    bad = bad or BadRecords()
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode") as pool:
        for shard in missing:
            rows = made_of.shard_range(shard)
            tensors = make_shard(source, rows, made_of, encoders, pool, bad)
            write_whole(shard_path(folder, shard), pack_shard(tensors, made_of))
            done += len(rows)
            speed = done / max(time.monotonic() - began, 1e-9)
            say(f"{shard_path(folder, shard).name}: {done:,} of {total:,} rows, {speed:,.0f}/s")
    return _finish(folder, made_of) or replace(manifest, finished=False, shards=())


def _claim(folder: Path, made_of: Description) -> Manifest:
    """The manifest that is there, or a new unfinished one: this folder is for this store alone."""
    found = read_manifest(folder)
    if found is not None:
        old, new = _flat(to_dict(found.made_of)), _flat(to_dict(made_of))
        for name in old:
            if old[name] != new[name]:
                raise UserError(
                    f"{folder} holds embeddings with {name} {old[name]!r}, this run has "
                    f"{new[name]!r}: name another folder, or the old value to continue"
                )
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(e.name for e in folder.iterdir() if not e.name.startswith(f".{MANIFEST}"))
    except OSError as error:
        raise UserError(f"folder {folder} cannot be made ({error.strerror})") from None
    # Shards are never without a manifest: it is written first. Another process may do so now.
    if foreign and MANIFEST not in foreign:
        raise UserError(f"{folder} holds other files ({foreign[0]}): name a new folder")
    manifest = Manifest(FORMAT, False, made_of)
    _write_manifest(folder, manifest)
    return manifest


def _remove_damaged(folder: Path, manifest: Manifest) -> bool:
    """Delete the shards whose SHA-256 is not that of a finished manifest; whether there are any.

    Every process looks at all of them: none may complete a manifest with another's damaged shard.
    """
    damaged = [
        path
        for shard, entry in enumerate(manifest.shards)
        if not (path := shard_path(folder, shard)).exists() or _sha256(path) != entry.sha256
    ]
    for path in damaged:
        path.unlink(missing_ok=True)
    return bool(damaged)


def _sha256(path: Path) -> str | None:
    try:
        return ShardFile(path).sha256()
    except UserError:
        return None


def _is_whole(folder: Path, shard: int, made_of: Description) -> bool:
    """A shard is there and of this store."""
    path = shard_path(folder, shard)
    try:
        return path.exists() and ShardFile(path).job_id == made_of.job_id
    except UserError:
        return False


def _finish(folder: Path, made_of: Description) -> Manifest | None:
    """The finished manifest, written; None where shards are missing."""
    paths = [shard_path(folder, shard) for shard in range(made_of.num_shards)]
    if not all(path.exists() for path in paths):
        return None
    entries = []
    for shard, path in enumerate(paths):
        file = ShardFile(path)
        rows = len(made_of.shard_range(shard))
        if file.job_id != made_of.job_id or len(file.tensors["readable"]) != rows:
            raise UserError(f"{path} belongs to another store: delete it and run the command again")
        unreadable = rows - int(file.tensors["readable"].sum())
        captions = len(file.tensors["token_ends"])
        entries.append(ShardEntry(rows, captions, unreadable, file.size, file.sha256()))
    manifest = Manifest(FORMAT, True, made_of, tuple(entries))
    _write_manifest(folder, manifest)
    for left_over in folder.glob(".shard-*.tmp"):  # of a run that was killed while it wrote
        with contextlib.suppress(OSError):
            left_over.unlink()
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(to_dict(manifest), indent=1)
    write_whole(folder / MANIFEST, (text + "\n").encode())


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with the fields of its one nested object as 'data.split'."""
    nested = {f"data.{name}": value for name, value in data["data"].items()}
    return {**{name: value for name, value in data.items() if name != "data"}, **nested}
