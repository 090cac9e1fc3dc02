"""One run a folder: two that write the same checkpoints would spoil both."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

from unclip_jax.errors import UserError


class RunLock:
    """Holds RUN/lock for as long as it is open. The system frees it when the process dies, however
    it dies: a file that is left behind locks nothing.

    Raises:
        UserError: another process holds it, or the folder cannot be made.
    """

    def __init__(self, workdir: Path) -> None:
        path = workdir / "lock"
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--workdir {workdir} cannot be made ({error.strerror})") from error
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise UserError(
                f"{workdir} is in use by another run (process {owner}): wait for it, stop it, or "
                "name another --workdir"
            ) from None
        except (ImportError, OSError):  # no such call, or not on this file system
            print(f"{path}: no locks here; start one run a folder", file=sys.stderr)
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
