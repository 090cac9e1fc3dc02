"""One run a folder: two that write the same checkpoints would spoil both."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from types import TracebackType

from unclip_jax.errors import UserError


class RunLock:
    """Holds RUN/lock for as long as it is open. The system frees it when the process dies, however
    it dies: a file that is left behind locks nothing.

    Args:
        option: what the command calls the folder.
    Raises:
        UserError: another process holds it, or the folder cannot be made.
    """

    def __init__(self, workdir: Path, option: str = "--workdir") -> None:
        self._workdir, self._option = workdir, option
        self._file = _take(workdir, option)

    def keep(self) -> None:
        """Hold the file that is there now, if somebody has removed or replaced the one that was.

        Raises:
            UserError: another run holds it, and has begun in this folder.
        """
        try:
            there = os.stat(self._workdir / "lock")
            is_ours = os.path.samestat(there, os.fstat(self._file.fileno()))
        except FileNotFoundError:
            is_ours = False
        if not is_ours:
            removed, self._file = self._file, _take(self._workdir, self._option)
            removed.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _take(workdir: Path, option: str) -> io.FileIO:
    """RUN/lock, open and locked."""
    path = workdir / "lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise UserError(f"{option} {workdir} cannot be made ({error.strerror})") from error
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().decode(errors="replace").strip() or "unknown"
        file.close()
        raise UserError(
            f"{workdir} is in use by another run (process {owner}): wait for it, stop it, or "
            f"name another {option}"
        ) from None
    except (ImportError, OSError):  # no such call, or not on this file system
        print(f"{path}: no locks here; start one run a folder", file=sys.stderr)
    with contextlib.suppress(OSError):  # on a full disk nobody is told who holds it
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
    return file
