"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path

from unclip_jax.errors import UserError

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


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """A file that appears whole or not at all, also when the process or the machine dies.

    It is written beside its place, as `.NAME-xxxxxxxx.tmp`, and renamed. Without the fsync before
    that (half a millisecond on an SSD) a machine that loses power can leave the name with no bytes.
    The rename itself is not synced: what is lost then is the whole file, which a rerun sees.

    Raises:
        UserError: it cannot be written; nothing is left over.
    """
    target = Path(path)
    start = os.fsdecode(os.fsencode(target.name)[:200])  # names have 255 bytes at most
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{start}-", suffix=".tmp", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(scratch, 0o644)  # mkstemp makes files that only their owner reads
            os.replace(scratch, target)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "mend that")
        raise UserError(
            f"cannot write {target} ({error.strerror or error}): {remedy} and run the same command "
            "again"
        ) from None


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
