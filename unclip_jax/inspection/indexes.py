"""An index of pictures, `unclip index`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unclip_jax.clip_tools.index import PictureIndex, read_list, read_manifest
from unclip_jax.errors import UserError
from unclip_jax.inspection.findings import Finding


def look_at_index(folder: Path, verify: bool) -> Finding:
    """Its CLIP and its pictures.

    Args:
        verify: read all embeddings and compare them with their SHA-256.
    Raises:
        UserError: index.json is damaged.
    """
    manifest = read_manifest(folder)
    assert manifest is not None
    facts: dict[str, Any] = {
        "clip": manifest.clip_id,
        "width": manifest.width,
        "dtype": manifest.dtype,
        "folder": manifest.pictures,
        "finished": manifest.finished,
        "shards": len(manifest.shards),
        "pictures": sum(entry.rows for entry in manifest.shards),
    }
    problems = (
        [] if manifest.finished else ["it is not finished: run the same `unclip index` again"]
    )
    index = PictureIndex(folder, manifest)
    unreadable = 0
    for place, entry in enumerate(manifest.shards):
        try:
            index.names(place)
            unreadable += len(read_list(folder, entry.number)[0].unreadable)
            if verify:
                index.embeddings(place)
        except UserError as error:
            problems.append(str(error))
    checked = "SHA-256 of every file" if verify else "lists of names; --verify reads the arrays"
    facts["unreadable"] = unreadable
    facts["state"] = "damaged" if problems else f"good ({checked})"
    return Finding("index of pictures", facts, problems=tuple(problems))
