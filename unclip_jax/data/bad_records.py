"""Pictures that cannot be read: counted, listed in the run folder, and too many stop the run."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

from unclip_jax.errors import UserError
from unclip_jax.printable import printable

_ESCAPES = "backslashreplace"
"""A name that is not UTF-8 has surrogates: JSON has them as escapes too."""


class BadRecords:
    """Counts each unreadable record once, and appends it to a file of JSON lines.

    Args:
        path: the list ('RUN/skipped.jsonl'), made when the first record is bad; read back, so that
            a resumed run does not list a record again. None keeps no list.
        max_fraction: more than this share of the data set stops the run.
        process_index: process p > 0 of a run appends to a file of its own, 'RUN/skipped.p.jsonl',
            and all read the files of all.
    """

    def __init__(
        self,
        path: Path | str | None = None,
        max_fraction: float = 1.0,
        *,
        process_index: int = 0,
    ) -> None:
        self._path = self._own = Path(path) if path else None
        if self._path and process_index:
            self._own = self._path.with_suffix(f".{process_index}{self._path.suffix}")
        self._max_fraction = max_fraction
        self._names: set[str] = set()
        self._sizes: dict[Path, int] = {}  # how much of each file was read
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Different records that could not be read, by any process."""
        with self._lock:
            self._read_lists()
            return len(self._names)

    def _read_lists(self) -> None:
        """Take in what was appended since the last time."""
        if self._path is None:
            return
        for path in self._path.parent.glob(f"{self._path.stem}*{self._path.suffix}"):
            with path.open("rb") as file:
                file.seek(self._sizes.get(path, 0))
                lines = file.read().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):
                lines.pop()  # another process is writing it, or was killed
            self._sizes[path] = self._sizes.get(path, 0) + sum(map(len, lines))
            for line in lines:
                try:
                    self._names.add(json.loads(line)["name"])
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a killed run left half written

    def add(self, name: str, reason: str, total: int) -> None:
        """Count one record of a data set of `total`.

        Raises:
            UserError: now more than `max_fraction` of them are bad.
        """
        with self._lock:
            self._read_lists()
            if name not in self._names:
                self._names.add(name)
                if self._own:
                    line = json.dumps({"name": name, "reason": reason}, ensure_ascii=False)
                    # On a full disk it is counted all the same, and listed by the next start.
                    with contextlib.suppress(OSError):
                        self._own.parent.mkdir(parents=True, exist_ok=True)
                        with self._own.open("a", encoding="utf-8", errors=_ESCAPES) as file:
                            file.write(line + "\n")
            if len(self._names) > self._max_fraction * total:
                where = f", listed in {self._path}" if self._path else ""
                raise UserError(
                    f"{len(self._names)} of {total} pictures cannot be read{where}; "
                    f"the last is {printable(name)} ({reason}); "
                    "mend them or raise data.max_bad_fraction"
                )
