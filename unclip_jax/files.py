"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unclip_jax.errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of a file",
    errno.EROFS: "make the folder writable",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.ENOENT: "keep the folder where it is",
    errno.ENOTDIR: "keep the folder where it is",
}
_SCRATCH = re.compile(r"\.(.+)-[a-z0-9_]{8}\.tmp")


class NotWritten(UserError):
    """A file could not be written; nothing is left over.

    Args:
        what: the file and the reason, for a caller that goes on without the file.
        remedy: for one that does not.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy} and run the same command again")
        self.what = what


def write_whole(path: str | os.PathLike[str], data: bytes | Iterable[bytes]) -> None:
    """A file that appears whole or not at all, also when the process or the machine dies.

    Args:
        data: the bytes, or parts of them that are made as they are written.
    Raises:
        NotWritten: it cannot be written.
    """
    with whole_file(path) as scratch, open(scratch, "wb") as file:
        file.writelines((data,) if isinstance(data, bytes) else data)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """The name of an empty file beside `path`, which gets its name when the block has written it.

    It is called `.NAME-xxxxxxxx.tmp`. Without the fsync before the renaming (half a millisecond on
    an SSD) a machine that loses power can leave the name with no bytes. The rename itself is not
    synced: what is lost then is the whole file, which a rerun sees.

    Raises:
        NotWritten: for an OSError in the block, too.
    """
    target = Path(path)
    start = os.fsdecode(os.fsencode(target.name)[:200])  # names have 255 bytes at most
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{start}-", suffix=".tmp", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield scratch
                os.fsync(file.fileno())
            os.chmod(scratch, 0o644)  # mkstemp makes files that only their owner reads
            os.replace(scratch, target)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as error:
        raise not_written(target, error) from None


def make_folder(folder: Path) -> None:
    """The folder, with those that it lies in; NotWritten if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(folder, error) from None


def not_written(target: Path, error: OSError) -> NotWritten:
    """What is said of a file that cannot be written: why, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "mend that")
    return NotWritten(f"cannot write {target} ({error.strerror or error})", remedy)


class PatientFile:
    """A file that is appended to; what a full disk does not take waits for room, in order.

    Raises:
        NotWritten: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise not_written(path, error) from None
        self._waiting = b""

    def append(self, data: bytes) -> None:
        """At the end, at once if there is room."""
        self._waiting += data
        # A full disk is for the checkpoints to tell: whether it ends the run is a field of theirs.
        with contextlib.suppress(OSError):
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """A last try."""
        self.append(b"")
        self._file.close()


def save_tensors(path: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> None:
    """Arrays as a safetensors file that appears whole or not at all.

    Raises:
        NotWritten: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with whole_file(path) as scratch:
        try:
            save_file(arrays, scratch)
        except SafetensorError as error:  # the library's word for an OSError, with the number
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code)) from error


def meant_for(scratch: str) -> str | None:
    """The name of the file that `scratch` was to become, its first 200 bytes; None if it is no
    scratch file of `write_whole`."""
    match = _SCRATCH.fullmatch(scratch)
    return match and match[1]


def check_folder(folder: Path) -> None:
    """UserError unless `folder` can be written, or made."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    reason = None
    if not there.is_dir():
        reason = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = f"{there} is read-only"
    if reason is not None:
        raise UserError(f"{folder} cannot be written, {reason}: name another folder")


def missing(path: str | os.PathLike[str]) -> str:
    """Why a file or folder is not there, and what may be meant: 'does not exist: ...'."""
    place = Path(path).expanduser()
    if not place.parent.is_dir():
        return f"does not exist, nor does its folder {place.parent}: check the name"
    near = find_like(place)
    return "does not exist: " + ("check the name" if near is None else f"did you mean {near}?")


def find_like(path: Path) -> Path | None:
    """What lies in the same folder under a name that is like that of `path`."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return None
    near = nearest(path.name, sorted(names))
    return None if near is None else path.parent / near
