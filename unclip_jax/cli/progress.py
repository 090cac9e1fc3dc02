"""What a command says while it works: on standard error, so that its output stays its result."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from unclip_jax.printable import printable

SAY_EVERY = 5.0
"""Seconds between two lines of progress where there is no terminal."""
SLOW = 1.0
"""Seconds of compiling that are worth a line."""


def say(text: str) -> None:
    """A line, once for all hosts that work together; what would act on a terminal is escaped."""
    if _is_first():
        print(printable(text, None), file=sys.stderr, flush=True)


class PictureProgress:
    """How far a job is: a bar on a terminal, else a line now and then.

    Compiling, which people take for a hang, has its name and its seconds. Speed and time left do
    not count it.

    Args:
        count: pictures to draw.
    """

    def __init__(self, count: int) -> None:
        self._count, self._done = count, 0
        self._began = self._said = time.monotonic()
        self._compiling = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> PictureProgress:
        if self._count and _is_first() and sys.stderr.isatty():
            self._bar, self._task = _make_bar(self._count)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def compiling(self, name: str, seconds: float | None) -> None:
        """A program's compilation begins, or has taken `seconds`; see `RowRunner.on_compile`."""
        if seconds is None:
            self._show(f"compiling {name} ...")
            return
        self._compiling += seconds
        if seconds >= SLOW:
            self._show(f"{name} is compiled, {seconds:.0f} s; cached for the next time")
        if self._bar is not None:
            self._bar.update(self._task, description="drawing")

    def advance(self, pictures: int) -> None:
        """So many more are drawn."""
        self._done += pictures
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=self._speed(now))
        elif now - self._said > SAY_EVERY:
            self._said = now
            say(f"{self._done}/{self._count} pictures{self._speed(now)}")

    def _speed(self, now: float) -> str:
        seconds = now - self._began - self._compiling
        if seconds <= 0:
            return ""
        speed = self._done / seconds
        return f", {speed:.2g} a second, {_duration((self._count - self._done) / speed)} left"

    def _show(self, text: str) -> None:
        if self._bar is None:
            say(text)
        elif text.endswith("..."):
            self._bar.update(self._task, description=printable(text))
        else:
            self._bar.console.print(printable(text), markup=False, highlight=False)


def _make_bar(count: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pictures{task.fields[speed]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    return bar, bar.add_task("loading", total=count, speed="")


def _duration(seconds: float) -> str:
    """As '12 s', '3.4 min' or '5.6 h'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _is_first() -> bool:
    jax = sys.modules.get("jax")
    return jax is None or jax.process_index() == 0
