"""Where a run's wall time went: RUN/goodput.json, one entry for each time that it was started.

Goodput is the share of time in steps that were not done before; see "ML productivity goodput" of
MaxText and of Cloud TPU for the idea.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from unclip_jax.bounded import read_json
from unclip_jax.errors import UserError
from unclip_jax.files import write_whole

Kind = Literal["start", "compile", "input", "save", "preview", "recover"]
KINDS: tuple[Kind, ...] = ("start", "compile", "input", "save", "preview", "recover")
FILE = "goodput.json"
_MAX_BYTES = 10_000_000
"""Of that file; 300 a start."""


class Goodput:
    """The ledger of a run; what is in none of its spans is time in steps.

    Args:
        workdir: None writes nothing: another process does.
        start: the step that the run continues from. Steps up to the last one that an earlier start
            had reached are done again, and count as recovering, as does all that comes before them.
        began: `time.monotonic()` when the process began.
    """

    def __init__(self, workdir: Path | None, start: int, began: float) -> None:
        self._path = None if workdir is None else workdir / FILE
        self._earlier = [] if self._path is None else _read(self._path)
        self._redo_until = max((entry["last_step"] for entry in self._earlier), default=0)
        self._began = began
        self._start = self._last = start
        self._spent = dict.fromkeys(KINDS, 0.0)
        self._mark = began
        is_again = start > 0 or bool(self._earlier)
        self._add("recover" if is_again else "start")

    def _add(self, kind: Kind) -> None:
        now = time.monotonic()
        self._spent[kind] += now - self._mark
        self._mark = now

    @contextlib.contextmanager
    def span(self, kind: Kind) -> Iterator[None]:
        """Around what keeps the loop from dispatching steps."""
        self._end_steps()
        yield
        self._add("recover" if self._last < self._redo_until else kind)

    def _end_steps(self) -> None:
        """What passed since the last span was in steps."""
        if self._last < self._redo_until:
            self._add("recover")
        else:
            self._mark = time.monotonic()

    @property
    def aside(self) -> float:
        """Seconds in no step so far."""
        return sum(self._spent.values())

    def reached(self, step: int) -> None:
        """The step that was dispatched last."""
        if self._last < self._redo_until <= step:
            self._end_steps()
        self._last = step

    def go_back(self, step: int) -> None:
        """The next step is the one after `step`: all up to where the run was is done again."""
        self._end_steps()
        self._redo_until = max(self._redo_until, self._last)
        self._last = step

    def seconds(self) -> dict[str, float]:
        """By kind, with `steps` and `total`."""
        total = time.monotonic() - self._began
        spent = {kind: round(value, 3) for kind, value in self._spent.items()}
        return {"total": round(total, 3), "steps": round(total - self.aside, 3), **spent}

    def write(self) -> None:
        """Bring the file up to date."""
        if self._path is None:
            return
        entry = {
            "first_step": self._start + 1,
            "last_step": self._last,
            "seconds": self.seconds(),
        }
        text = json.dumps([*self._earlier, entry], indent=1) + "\n"
        with contextlib.suppress(UserError):  # it only tells: no reason to stop a run
            write_whole(self._path, text.encode())

    def summary(self) -> str:
        """This start's shares in one line."""
        seconds = self.seconds()
        shares = {name: value / seconds["total"] for name, value in seconds.items()}
        del shares["total"]
        return ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share >= 5e-4)


def _read(path: Path) -> list[dict[str, Any]]:
    """The entries of earlier starts; a file that is none is begun anew: it only tells."""
    try:
        entries = read_json(path, _MAX_BYTES)
        return [entry for entry in entries if isinstance(entry["last_step"], int)]
    except (OSError, ValueError, TypeError, KeyError):
        return []
