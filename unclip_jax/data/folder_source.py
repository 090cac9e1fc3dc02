"""A folder of pictures with captions, as people keep them.

The captions of `a.png` are the lines of `a.txt` beside it, or lines of `captions.jsonl` (also
`metadata.jsonl`, the name that Hugging Face uses) at the top of the folder:
{"file": "sub/a.png", "caption": "a red apple"}; `image` and `file_name` also name the file, `text`
and `captions` the caption, which may be a list.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from unclip_jax.bounded import parse_json, read_bounded
from unclip_jax.data.images import picture_bytes
from unclip_jax.data.records import MAX_TEXT, PICTURES, Record, clean_captions
from unclip_jax.errors import UserError
from unclip_jax.printable import printable

LISTS = ("captions.jsonl", "metadata.jsonl")
_FILE_KEYS = ("file", "image", "file_name")
_CAPTION_KEYS = ("caption", "text", "captions")


class FolderSource:
    """The captioned pictures under a folder, at any depth, sorted by path.

    A picture without a caption is left out, and how many there are is said on stderr.

    Raises:
        UserError: no such folder, no pictures, none with a caption, a list that is not JSON lines.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).expanduser()
        if not self._folder.is_dir():
            raise UserError(
                f"data.source {folder!r}: no such folder; give 'emoji', a folder of pictures, "
                "a pattern of .tar shards, or 'tfds:FOLDER'"
            )
        names = list_pictures(self._folder)
        if not names:
            raise UserError(f"data.source {folder!r}: no pictures ({', '.join(PICTURES)}) in there")
        listed = _read_lists(self._folder)
        self._items: list[tuple[str, tuple[str, ...]]] = []
        for name in names:
            captions = listed.get(name) or _read_text(self._folder / name)
            if captions:
                self._items.append((name, captions))
        missing = len(names) - len(self._items)
        if not self._items:
            raise UserError(
                f"data.source {folder!r}: none of its {len(names)} pictures has a caption; put "
                f"{Path(names[0]).stem}.txt beside {names[0]}, or write {LISTS[0]}"
            )
        if missing:
            kept = {name for name, _ in self._items}
            first = next(name for name in names if name not in kept)
            print(
                f"{printable(folder)}: {missing} of {len(names)} pictures have no caption and are "
                f"left out, the first is {printable(first)}",
                file=sys.stderr,
            )

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int, /) -> Record:
        name, captions = self._items[index]
        return Record(name, picture_bytes(self._folder / name, name=name), captions)


def list_pictures(folder: Path) -> list[str]:
    """Paths relative to the folder with '/', sorted, so that the order is the same everywhere."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(PICTURES) and not name.startswith("."):
                found.append(Path(parent, name).relative_to(folder).as_posix())
    return sorted(found)


def _read_text(picture: Path) -> tuple[str, ...]:
    text = picture.with_suffix(".txt")
    try:
        return clean_captions(read_bounded(text, MAX_TEXT).decode("utf-8-sig"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise UserError(f"{text}: cannot be read as UTF-8 ({error})") from None


def _read_lists(folder: Path) -> dict[str, tuple[str, ...]]:
    """Captions by path as the lists write it. The paths are only compared, never opened."""
    found: dict[str, tuple[str, ...]] = {}
    for path in (folder / name for name in LISTS):
        if not path.is_file():
            continue
        try:
            # Not splitlines: a caption may hold U+2028, which JSON does not escape.
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as UTF-8 ({error})") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                name, captions = _read_line(line, f"{path}, line {number}")
                found[name] = found.get(name, ()) + captions
    return found


def _read_line(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    try:
        item: Any = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if isinstance(item, dict):
        name = next((item[key] for key in _FILE_KEYS if isinstance(item.get(key), str)), None)
        captions = next((item[key] for key in _CAPTION_KEYS if key in item), None)
        if name is not None and isinstance(captions, (str, list)):
            return os.path.normpath(name).replace(os.sep, "/"), clean_captions(captions)
    found = printable(line, 80)
    raise UserError(f'{where}: expected {{"file": "a.png", "caption": "..."}}, found {found}')
