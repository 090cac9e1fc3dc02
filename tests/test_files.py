"""A file is there whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from unclip_jax.errors import UserError
from unclip_jax.files import check_folder, meant_for, write_whole


def test_a_file_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its name only when all bytes are on the disk."""
    target, seen = tmp_path / ("n" * 250 + ".png"), []
    target.write_bytes(b"before")
    replace, sync = os.replace, os.fsync

    def look(*names: str | os.PathLike[str]) -> None:
        seen.append(("replace", target.read_bytes(), Path(names[0]).read_bytes()))
        replace(*names)

    monkeypatch.setattr(os, "replace", look)
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(("sync",)), sync(number)))
    write_whole(target, b"after")
    assert seen == [("sync",), ("replace", b"before", b"after")]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"after"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "writable"), (errno.EIO, "mend that")],
)
def test_a_write_that_fails_leaves_nothing(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=rf"{os.strerror(number)}\): .*{remedy}.* again"):
        write_whole(target, b"after")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_scratch_files_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that was killed leaves them."""
    monkeypatch.setattr(os, "replace", lambda *_: None)
    write_whole(tmp_path / "a-b.png", b"x")
    (scratch,) = os.listdir(tmp_path)
    assert meant_for(scratch) == "a-b.png"
    for name in ("a-b.png", ".a-b.png", ".x.tmp", ".a.png-1234567.tmp"):
        assert meant_for(name) is None


def test_a_folder_that_can_be_written(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "newer")
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    for path in ("file", "file/under", "nowhere", "nowhere/under"):
        with pytest.raises(UserError, match="is no folder: name another"):
            check_folder(tmp_path / path)
