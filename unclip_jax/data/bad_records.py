"""Pictures that cannot be read: counted, listed in the run folder, and too many stop the run."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from unclip_jax.errors import UserError


class BadRecords:
    """Counts each unreadable record once, and appends it to a file of JSON lines.

    Args:
        path: the list ('RUN/skipped.jsonl'), made when the first record is bad; read back, so that
            a resumed run does not list a record again. None keeps no list.
        max_fraction: more than this share of the data set stops the run.
    """

    def __init__(self, path: Path | str | None = None, max_fraction: float = 1.0) -> None:
        self._path = Path(path) if path else None
        self._max_fraction = max_fraction
        self._names: set[str] = set()
        self._lock = threading.Lock()
        if self._path and self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    self._names.add(json.loads(line)["name"])
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a killed run left half written

    @property
    def count(self) -> int:
        """Different records that could not be read."""
        return len(self._names)

    def add(self, name: str, reason: str, total: int) -> None:
        """Count one record of a data set of `total`.

        Raises:
            UserError: now more than `max_fraction` of them are bad.
        """
        with self._lock:
            if name not in self._names:
                self._names.add(name)
                if self._path:
                    line = json.dumps({"name": name, "reason": reason}, ensure_ascii=False)
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    with self._path.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")
            if len(self._names) > self._max_fraction * total:
                where = f", listed in {self._path}" if self._path else ""
                raise UserError(
                    f"{len(self._names)} of {total} pictures cannot be read{where}; "
                    f"the last is {name} ({reason}); mend them or raise data.max_bad_fraction"
                )
